# ruff: noqa: E501 - a question a line
"""Questions worded freely, by hand, in nobody's docstring's words, each with the functions that would serve it.

Each names a quantity as a person with a problem would. Several functions serve where a quantity has several methods and
the question names none; a question counts as found when one of them is. No library module is on both sides of the split:
`DEVELOPMENT` may be looked at while retrieval is changed, `TEST` is for the end. From its 80th question on, `TEST` was
written after the first 79 had left claims open, and before any search was tried on what was written.
"""

DEVELOPMENT = """
Water runs at 2 m/s through a 5 cm hose; is that laminar or turbulent, which dimensionless group tells me? | Reynolds
Does heat or momentum spread faster in this oil? I know how it conducts, how thick it is and its heat storage. | Prandtl
Which number compares buoyancy with viscous drag for air next to a warm wall? | Grashof
I want the product that decides when a heated layer of liquid starts to roll over. | Rayleigh
How does inertia compare with the skin of a droplet that is torn apart by an air stream? | Weber
A boat moves at 5 m/s and is 12 m long; how does its inertia compare with gravity waves? | Froude
How fast relative to sound does a jet fly at 280 m/s? | Mach
Is the gas so thin that molecules hit the walls more often than each other? | Knudsen
Compare how a lump of steel conducts inside with how it is cooled outside, to see if it has one temperature. | Biot
How far has heat soaked into the slab after ten minutes, without dimensions? | Fourier_heat
How tall must a column of water be to press with two bar at its foot? | head_from_P
What pressure does a 10 m column of mercury exert? | P_from_head
A fitting loses three velocity heads at 4 m/s; how many pascals is that? | dP_from_K
Convert a resistance of 1.5 velocity heads of a bend into the straight run of pipe that would lose as much. | L_equiv_from_K
How quickly would a bead sinking in honey compare its own response time with the eddies around it? | Stokes_number
Gravity on a mountain at 45 degrees north, 3000 m up? | gravity
How rough is the wall compared with the bore of my tube? | relative_roughness
For a drop hanging on a needle, does weight or the surface win? | Bond
What factor goes into Darcy's equation for a rough steel line at a hundred thousand on Osborne's scale? | friction_factor
Give me Darcy's factor by the implicit law with the logarithm that everyone iterates. | Colebrook
Loss factor of perfectly smooth tubing with the quarter-power rule from 1913 | Blasius
Explicit approximation of the wall loss factor that a Norwegian published in 1983 | Haaland
How large is wall resistance in slow, orderly flow where only 64 and one number matter? | friction_laminar
Pressure lost per hundred metres of line for one liquid, given throughput, bore and wall factor. | one_phase_dP
When does the flow in a coiled tube stop being orderly? | helical_Re_crit, helical_transition_Re_Ito, helical_transition_Re_Schmidt, helical_transition_Re_Seth_Stahel, helical_transition_Re_Srinivasan, helical_transition_Re_Kubair_Kuloor, helical_transition_Re_Kutateladze_Borishanskii
Typical bumpiness in metres of the inside of a cast iron main? | material_roughness, nearest_material_roughness, roughness_Farshad
How many litres are in a lying drum with bulging ends that is filled up to 40 cm? | V_horiz_ellipsoidal, V_horiz_torispherical, V_horiz_spherical, V_horiz_guppy, V_horiz_conical, V_from_h
How much outer skin does a silo with a cone below have, to paint it? | SA_tank, SA_conical_head, SA_from_h
How ball-like is a grain, given its volume and skin? | sphericity
What does a straight round rod of given length hold inside, by bore and length? | V_cylinder
How much air is in a storage vessel with domed ends altogether? | V_tank
By how much does corrugation make a heat exchanger sheet larger? | plate_enlargement_factor
How high does liquid stand in a round pipe when its wetted cross-section is known? | circle_segment_h_from_A
Insulation on a pipe: how much does the shell hold back heat per metre, inner and outer size known? | R_cylinder
Turn a wall's thickness and material constant into its resistance to heat. | k_to_R
American builders quote R-19; what material constant is that? | R_value_to_k
Heat leaking from a hot line buried beside a parallel cold line: which shape constant? | S_isothermal_pipe_to_isothermal_pipe
Shape constant for a buried warm pipe below a flat lawn | S_isothermal_pipe_to_plane
Shape constant for a buried hot ball below the ground's surface | S_isothermal_sphere_to_plane
How many transfer units does my exchanger have if I know its size, film value and the weaker stream? | NTU_from_UA
What share of the best possible heat is exchanged, with the number of units and the ratio of the two streams? | effectiveness_from_NTU
How many units are needed to reach 80 % of the ideal duty? | NTU_from_effectiveness
Which stream can take up less heat per degree? | calc_Cmin
Which stream can take up more heat per degree? | calc_Cmax
How far does a bundle fall short of pure counterflow, as a multiplier on the log mean? | F_LMTD_Fakheri
How many pipes fit in a shell of a metre? | Ntubes, Ntubes_HEDH, Ntubes_Perrys, Ntubes_Phadkeb, Ntubes_VDI
How wide must the bundle be to hold 300 pipes? | DBundle_for_Ntubes_HEDH, DBundle_for_Ntubes_Phadkeb, size_bundle_from_tubecount, D_for_Ntubes_VDI
How long may an exchanger pipe hang free before it needs holding? | L_unsupported_max
Turn a crude oil's gravity degrees, such as 32, into a ratio to water. | API_to_SG
Crude weighs 0.86 times water; what do oilmen call that in degrees? | SG_to_API
Ratio of a liquid's weight to that of water at the same volume | SG
What does one cubic metre weigh if I know the space that a mole takes? | Vm_to_rho
Recast a recipe given by weight into one by number of molecules. | ws_to_zs
Recast a recipe given by number of molecules into one by weight. | zs_to_ws
Recast a recipe given by space taken into one by number of molecules. | Vfs_to_zs
How fast does a pulse travel in a gas with given compressibility? | speed_of_sound
How non-ideal is the gas: PV over RT? | Z
Does squeezing gas through a throttle cool it? Give the coefficient. | Joule_Thomson
How much of the wet steam has boiled, from its heat content? | vapor_mass_quality
Difference between the two heat capacities of a real fluid | Cp_minus_Cv
How much does a liquid shrink when pressed? | isothermal_compressibility
How much does a liquid swell per degree? | isobaric_expansion
At what push does propane boil at room temperature, with three fitted constants A, B and C? | Antoine
Estimate how strongly a liquid evaporates with only its critical point and the Pitzer factor. | Lee_Kesler, Ambrose_Walton, Edalat, Sanjari
At which pressure is water in balance with its own steam at 150 C? | Psat_IAPWS, iapws95_Psat, iapws92_Psat
At which temperature does water boil when pressed with ten bar? | Tsat_IAPWS, iapws95_Tsat
How slope of the boiling curve changes for an equation with three constants | dAntoine_dT
Turn milligrams in a cubic metre of air into parts in a million. | mgm3_to_ppmv
Turn parts in a million into milligrams in a cubic metre of air. | ppmv_to_mgm3
From which share in air on does a vapour catch fire at all? | LFL, Suzuki_LFL
Above which share in air is a vapour too rich to burn? | UFL, Suzuki_UFL
When does a liquid's vapour burn if a spark comes near? | T_flash
How hot must it get to burst into flames without a spark? | T_autoignition
Highest amount of a vapour that workers may breathe over a shift | TWA
Chance that a bell-shaped measurement stays below 1.3 sigma | ndtr, norm_cdf
Below which value lie 97.5 % of a bell curve? | ndtri, norm_ppf
Continue the factorial to broken numbers. | gamma
Area under the bell between minus z and z, as used in diffusion problems | erf
Solve w e^w = x? No: I need the digamma, slope of the log of the generalised factorial. | digamma, psi
How does a drum's skin swing: cylinder wave of zeroth kind at the centre finite | j0
Period of a pendulum with large swing needs the complete integral of the first kind. | ellipk
Turn log-odds into a chance. | expit
Turn a chance into log-odds. | logit
"""

TEST = """
How fast does rain water run in a sloping concrete ditch, by the Irish engineer's rule with his n? | V_Manning
How fast does a canal flow with the French engineer's C? | V_Chezy
A sharp notch in a dam, shaped like a V, has water 20 cm above its point; how much runs over? | Q_weir_V_Shen
Water spills over a straight plate across the whole channel; how much? | Q_weir_rectangular_full_Ackers, Q_weir_rectangular_full_Kindsvater_Carter, Q_weir_rectangular_full_Rehbock, Q_weir_rectangular_full_SIA
Translate the French canal constant into the Irish one. | C_Chezy_to_n_Manning
How fast does a four pole machine turn without slip on 50 hertz mains? | speed_synchronous
How much of the electricity put into a mid-size machine comes out at the shaft? | motor_efficiency_underloaded, CSA_motor_efficiency, Corripio_motor_efficiency
What does a machine draw from three phases, ideally? | current_ideal
Which shape of impeller suits this head and throughput? One number is used to choose. | specific_speed
How much is lost in the electronics that set a machine's pace? | VFD_efficiency
Pressure lost by gas through a column filled with grains, after the well known 1952 formula | Ergun
Pressure lost through a bed of pebbles, any method | dP_packed_bed, Ergun, Carman, Brauer, Idelchik, Hicks, KTA, Tallmadge
How much empty space is between balls poured in a tube? | voidage_Benyahia_Oneil_spherical, voidage_Benyahia_Oneil
How fast may vapour rise in a drum before it carries drops along? | v_Souders_Brown
How high is the constant for a knock-out drum with a wire pad? | K_separator_demister_York
How much does pressure drop when natural gas is moved 100 km, by the Panhandle people? | Panhandle_A, Panhandle_B
How much gas does a trunk line carry, after the Weymouth rule? | Weymouth
Work for squeezing air from one to eight bar without losing heat | isentropic_work_compression
How hot does air get when squeezed from one to eight bar with an 80 % good machine? | isentropic_T_rise_compression
Work for squeezing a gas while it is kept at one temperature | isothermal_work_compression
Can the gas leave the nozzle any faster, or is it choked? | is_critical_flow, P_critical_flow
Pressure of a stream brought to rest | P_stagnation, stagnation_energy
Which even exponent describes a squeezing that is neither heat-tight nor at one temperature? | polytropic_exponent
How strongly does air hold back a cricket ball? | drag_sphere
How fast does a grain of sand finally sink? | v_terminal
How far has a dropped ball come after three seconds with the air holding it back? | integrate_drag_sphere
Mean temperature gap between two streams in counterflow | LMTD
How well does a ring of metal around a pipe shed heat compared with one at uniform temperature? | fin_efficiency_Kern_Kraus
How much does a bubbling pot take up per area and degree when the metal is 10 K above boiling? | h_nucleic, Rohsenow, Cooper, Forster_Zuber, McNelly, Montinsky, Gorenflo, Bier, Stephan_Abdelsalam
At which load does a boiling surface dry out? | qmax_boiling, Zuber, Serth_HEDH, HEDH_Montinsky
How bright does a perfectly dark body shine at one colour? | blackbody_spectral_radiance
Heat thrown off by a glowing dull surface to its colder surroundings | q_rad
Dimensionless heat uptake inside a pipe by the rule with 0.023 and the 0.8 power | turbulent_Dittus_Boelter, turbulent_Colburn
Heat uptake inside a pipe by the Russian formula from 1976 that uses the wall loss factor | turbulent_Gnielinski
Heat uptake inside a tube while the flow is still orderly near its mouth | laminar_entry_Seider_Tate, laminar_entry_thermal_Hausen, laminar_entry_Baehr_Stephan
How does wind cool a wire across the stream? | Nu_external_cylinder, Nu_cylinder_Churchill_Bernstein, Nu_cylinder_Zukauskas, Nu_cylinder_McAdams, Nu_cylinder_Fand, Nu_cylinder_Whitaker
How does still air cool a hot upright board? | Nu_free_vertical_plate, Nu_vertical_plate_Churchill
How does still air cool a hot pipe that lies flat? | Nu_horizontal_cylinder, Nu_horizontal_cylinder_Churchill_Chu, Nu_horizontal_cylinder_Kuehn_Goldstein, Nu_horizontal_cylinder_Morgan
How does still air cool a hot ball? | Nu_sphere_Churchill
Film of steam turning to water on a wall: heat per area and degree after the inventor of the theory | Nusselt_laminar
Heat from hot water to a jacketed stirred pot | Lehrer, Stein_Schmidt
Heat shed from gas to grains in a filled column | Nu_packed_bed_Gnielinski, Nu_Wakao_Kagei, Nu_KTA, Nu_Achenbach
How loud is a fan bank that cools with air? | air_cooler_noise_GPSA, air_cooler_noise_Mukherjee
How well does rock wool or brick conduct, by name? | k_material, nearest_material, ASHRAE_k
Heat taken by a sheet exchanger with chevrons | Nu_plate_Kumar, Nu_plate_Martin, Nu_plate_Muley_Manglik, Nu_plate_Khan_Khan
Where does the border between liquid and gas vanish for ethanol? | Tc, Pc, Vc
How does sugar share follow from the bending of light? | RI_to_brix
How strongly does a substance bend light? | RI
How strongly are the electrons of a molecule pulled apart by a field, from optics? | polarizability_from_RI
How much does a mole of toluene weigh? | MW
Guess a boiled liquid's weight per space with the compressed rule of Hankinson and Thomson. | COSTALD
Space that a mole of ideal vapour takes | ideal_gas
Heat to boil one mole, guessed from the boiling point after Riedel | Riedel
Move a boiling heat from one temperature to another by the 0.38 power. | Watson
How tight is the skin of water at 60 C? | sigma_IAPWS
How syrupy is water at 350 K? | mu_IAPWS
Mix the syrupiness of several gases after Wilke. | Wilke
How well does a thin gas conduct, after Eucken's simple idea? | Eucken
Warmth that escapes when all is burned and the water stays vapour, from the larger figure | LHV_from_HHV
How much does burning give when water is condensed, from the lower figure? | HHV_from_LHV
How strongly does one kilo of this gas warm the climate compared with carbon dioxide? | GWP
How much does it harm the ozone layer? | ODP
How does a solute spread between octanol and water? | logP
How uneven is a molecule's pull: polarity in debye | dipole_moment
Split a feed into vapour and liquid when each substance's K is known. | Rachford_Rice_solution, Rachford_Rice_solution2, flash_inner_loop, Rachford_Rice_solution_LN2
Ratio of a substance in the vapour to that in the liquid, guessed by critical data | Wilson_K_value, K_value
How much does salt or sugar lower the freezing? | Tm_depression_eutectic
How alike are a solvent and a polymer, from the heat that holds it together? | solubility_parameter
How did the old 1968 temperature scale differ from that of 1990? | ITS90_68_difference
How far apart are the centres of two molecules at rest, from the critical point? | sigma_Stiel_Thodos, sigma_Flynn, molecular_diameter, sigma_Bird_Stewart_Lightfoot_critical_1, sigma_Bird_Stewart_Lightfoot_critical_2
How much is in my savings after ten years of putting away 200 a month? | fv
What is a promise of 5000 in eight years worth now? | pv
How much do I owe each month on a house loan? | pmt
How many months until the loan is gone? | nper
Which yearly yield makes outlay and returns even out? | irr, rate
Is the investment worth it at a hurdle of 8 %: today's worth of all coming sums? | npv
How much of the third instalment only pays the bank's share? | ipmt
How much of the third instalment lowers the debt? | ppmt
Yield if returns are put away at another percentage than I borrow at | mirr
Where does a stuff exist as ice, liquid and vapour at once, in kelvin? | Tt
How low is the push at the one point where ice, liquid and vapour meet? | Pt
How far from round is a molecule, as Pitzer's single figure for it? | omega, omega_definition, LK_omega
At what heat does a stuff go from solid to liquid? | Tm
At what heat does a stuff start to bubble in the open air? | Tb
How much warmth does it take to turn a mole of ice-like stuff liquid? | Hfus
How squashed is the fluid at the end of the boiling curve: its PV over RT there | Zc
I know two of the three figures at the end of the boiling curve and want the third. | third_property, critical_surface, Ihmels, Meissner, Grigoras, Hekayati_Raeissi
Where would a blend of several gases cease to split into two phases, by Li's mixing? | chemicals_Li
How much does this blend of petrol resist knocking on the forecourt sign: mean of both ratings | AKI
How does a fuel do in the tougher of the two knock trials? | MON, Perez_Boehman_MON_from_ignition_delay
How does a fuel do in the gentler of the two knock trials? | RON, Perez_Boehman_RON_from_ignition_delay
By how much do the two knock trials of a fuel differ? | octane_sensitivity
How long does diesel wait before it fires in the test rig? | ignition_delay
The rig said 3.2 ms until firing; how good is the diesel by its usual rating? | IDT_to_DCN
How much draught do I need to feed a burner that gets this much fuel, at a set proportion? | air_fuel_ratio_solver
Count the atoms of each kind in C6H12O6. | simple_formula_parser, nested_formula_parser, formula_to_composition
How many electrons is SO4(2-) short or over? | charge_from_formula
Write a dict of atoms as a tidy chemical string. | serialize_formula
How strongly does this gas change the world's heat at the end of a span of years, rather than over it? | GTP
Energy a mole of gas can hold per degree, when I have the swinging speeds of its atoms. | Cpg_statistical_mechanics
Guess the warmth a solid holds per degree from its atoms alone, as a function of heat | Lastovka_solid, Perry_151
Guess the warmth a liquid holds per degree from the similarity of molecules | Dadgostar_Shaw
Guess the warmth a vapour holds per degree from the similarity of molecules | Lastovka_Shaw
An infrared line lies at 1600 per cm; which temperature does it stand for? | vibration_frequency_cm_to_characteristic_temperature
Registry number for acetone? | CAS_from_any
Is 7732-18-5 a real registry number or a typing slip? | check_CAS
Turn a registry number into a plain figure without dashes. | CAS_to_int
Turn a plain figure back into a registry number with dashes. | int_to_CAS
I have a string with several names of stuffs; give all their registry numbers. | IDs_to_CASs
How strong is the skin of a blend of hydrocarbons, if I know each one's parachor? | Weinaug_Katz
How strong is the skin of a crude cut against air, by the oil institute's rule? | API10A32
How strong is the skin between water and oil? | Meybodi_Daryasafar_Karimi
How strong is a liquid's skin, guessed from where it boils and its end point, after Brock | Brock_Bird
Skin of a liquid from two table figures and degrees Celsius, linear | Jasper
How deep is the well in which two molecules hold each other? | epsilon_Bird_Stewart_Lightfoot_boiling, epsilon_Bird_Stewart_Lightfoot_critical, epsilon_Bird_Stewart_Lightfoot_melting, epsilon_Flynn, epsilon_Stiel_Thodos, epsilon_Tee_Gotoh_Steward_1, epsilon_Tee_Gotoh_Steward_2, Stockmayer
What is kT measured in well depths, as the tables of bumping molecules want it? | T_star
How much do soft molecules deflect each other on average: the table figure for transport of gases | collision_integral_Neufeld_Janzen_Aziz, collision_integral_Kim_Monroe
Is this molecule a straight stick? | linear
How spread out is a molecule round its own middle of mass? | RG
By how much does water weaken an electric field in it? | permittivity_IAPWS, permittivity_CRC
By how much does benzene weaken an electric field in it? | permittivity_CRC
Warmth to boil off a mole right at the usual boiling heat, after Chen | Chen
Warmth to boil off a mole at any heat, after Clapeyron's slope | Clapeyron
Which power fits between two known boiling warmths of one liquid? | Watson_n
How much free energy is bound in a compound when it is built from its elements? | Gibbs_formation
How much disorder is made when a compound is built from its elements? | entropy_formation
How much warmth is set free when the vapour of this compound is made from its elements? | Hfg
How much warmth is set free when the crystal of this compound is made from its elements? | Hfs
Disorder of a mole of this gas at room conditions, counted from absolute zero | S0g
The warmth of making is listed for the liquid; what is it for the vapour? | Hf_basis_converter
Do the weights on both sides of my written reaction agree? | stoichiometry_MW_error
My reaction is written by grams; how is it by moles? | stoichiometry_mass_to_molar
My reaction is written by moles; how is it by grams? | stoichiometry_molar_to_mass
How much does sweet juice of 20 degrees on the wine grower's scale bend light? | brix_to_RI
How much does water bend yellow light at 20 C? | RI_IAPWS
How much light-bending does a mole bring, whatever its packing (Lorentz and Lorenz)? | molar_refractivity_from_RI
Most of a solid that will go into a solvent, ideally, from where it melts | solubility_eutectic
How much gas goes into a liquid under its push: turn the constant from one form into another | Henry_converter
How much gas goes into a liquid under its push, as it changes with heat | Henry_pressure, iapws04_Henry_air
The share of stickiness between molecules that is due to hydrogen | hansen_delta_h
The share of stickiness between molecules that is due to their poles | hansen_delta_p
A thermometer was calibrated on the scale of 1968; what would it read today? | T_converter
How well does water carry heat at 350 K? | k_IAPWS
How well does plain air carry heat? | k_air_lemmon
How syrupy is plain air at 300 K and its weight per space? | mu_air_lemmon
How well does a blend of gases carry heat, after Lindsay | Lindsay_Bromley
How well does a blend of two liquids carry heat, by shares of weight, after a Russian rule | Filippov
How well does a liquid carry heat when squeezed to many bars? | DIPPR9G, Missenard
How well does a liquid carry heat, from its mole's weight, boiling and end point after Riedel | Sato_Riedel
How well do the vapours of hydrocarbons carry heat, by Bahadori | Bahadori_gas
First correction of a gas from the ideal law, from its end point and roundness | BVirial_Pitzer_Curl, BVirial_Abbott, BVirial_Tsonopoulos, BVirial_Tsonopoulos_extended, BVirial_Meng, BVirial_Oconnell_Prausnitz, BVirial_Xiang
Second correction of a gas from the ideal law, for three molecules at once | CVirial_Orbey_Vera, CVirial_Liu_Xiang
I measured PV/RT; what is the first correction to the ideal law? | B_from_Z
I know the first correction to the ideal law; what is PV/RT? | B_to_Z
How thick a liquid gets under a thousand bar, after Lucas | Lucas
How much does a motor oil thin between 40 and 100 degrees, as one figure on the can? | viscosity_index
Turn seconds of a dripping cup of an old German or American kind into modern thickness | viscosity_converter
How runny is crude oil, by Twu? | Twu_1985
How syrupy is a gas at low push, from its end point after Yoon | Yoon_Thodos
Blend of liquids: weight per space when volumes just add up | Amgat
Space of a mole of boiling liquid after Rackett, from the end point | Rackett
Space of a mole of boiling liquid from roundness and one known point, Yamada | Yamada_Gunn
How much smaller is a liquid pressed by hundreds of bar, by Tait's logarithm? | Tait, Tait_molar
How heavy is molten salt or metal per litre above its melting? | CRC_inorganic
Put right numbers before the formulas of a burning so that all atoms are kept. | balance_stoichiometry
How far is a mix from its balance: products over educts to their powers | equilibrium_quotient
How strong is the salt in the water, half the sum of charge squared times amount? | chempy_ionic_strength, thermo_ionic_strength
How heavy is battery acid of 30 % at 20 C? | sulfuric_acid_density, density_from_concentration
How heavy is pure water at 25 C, to six figures? | water_density
Shares by weight in a compound whose formula counts I know | mass_fractions
Show a chemical string with small lowered digits on a web page. | formula_to_html
Show a chemical string with lowered digits in a typeset paper. | formula_to_latex
Draw the best straight line through points, with weights. | least_squares
How much gas goes through a town pipe of low push, after Spitzglass | Spitzglass_low
How hot does a gas get where it is brought to rest? | T_stagnation, T_stagnation_ideal
How cold is the gas in the throat as it goes at the speed of sound? | T_critical_flow
How far does push fall along a gas main that keeps its temperature? | isothermal_gas
I know how good the compressor is step by step; how good is it as a whole? | isentropic_efficiency
Which opening figure must a throttle valve have to let this much water by? | size_control_valve_l
Which opening figure must a throttle valve have to let this much steam or air by? | size_control_valve_g
Will bubbles collapse in my throttle valve and eat it? | cavitation_index
How loud is a valve that throttles gas? | control_valve_noise_g_2011
How loud is a valve that throttles a liquid? | control_valve_noise_l_2015
Is the liquid going through the valve as fast as it ever can? | is_choked_turbulent_l
The maker gives the American opening figure; what is it in the European one? | Cv_to_Kv, convert_flow_coefficient
The maker gives the European opening figure; what is it in the American one? | Kv_to_Cv, convert_flow_coefficient
How many velocity heads does a valve with a known European opening figure lose? | Kv_to_K
How cold was the winter, summed over days below a base, for the heating bill? | heating_degree_days
How warm was the summer, summed over days above a base, for the air conditioning? | cooling_degree_days
Slow bead in syrup: 24 over its number | Stokes
How long until a speck sinks steadily in thick oil? | time_v_terminal_Stokes
What does a screen of round wires cost in velocity heads? | round_edge_screen, round_edge_open_mesh
What does a plate with square holes cost in velocity heads? | square_edge_grill, square_edge_screen
Velocity heads lost in a knife-like slide valve with a wedge | K_gate_valve_Crane
Velocity heads lost in a tap whose plug screws down on a seat | K_globe_valve_Crane
Velocity heads lost in a valve with a drilled sphere | K_ball_valve_Crane
Velocity heads lost in a flap that lets water go one way only | K_swing_check_valve_Crane, K_tilting_disk_check_valve_Crane, K_lift_check_valve_Crane
Velocity heads lost in a valve with a turning disc in the bore | K_butterfly_valve_Crane
What does a smooth elbow cost? | bend_rounded, bend_rounded_Crane, bend_rounded_Miller
What does an elbow cut and welded at a corner cost? | bend_miter, bend_miter_Miller
A pipe widens at once to a larger one; what is lost? | diffuser_sharp
A pipe widens slowly in a cone; what is lost? | diffuser_conical, diffuser_conical_staged
A pipe narrows at once to a smaller one; what is lost? | contraction_sharp
A pipe narrows slowly in a cone; what is lost? | contraction_conical, contraction_conical_Crane
What is lost where water leaves a tank into a pipe with a knife-like rim? | entrance_sharp
What is lost where water leaves a tank into a pipe with a well-rounded rim? | entrance_rounded
What is lost where a pipe ends in a lake? | exit_normal
What does a coil of pipe wound like a spring cost? | helix
What does a pipe wound flat like a watch spring cost? | spiral
Water splits at a T; what does the side arm lose? | K_branch_diverging_Crane
A loss figure was stated for a 5 cm bore; what is it for a bore of 8 cm? | change_K_basis
How much of the ideal amount passes a plate with a hole between two taps, by the standard? | C_Reader_Harris_Gallagher, differential_pressure_meter_C_epsilon, C_Miller_1996
How much of the measured drop at a plate with a hole never comes back? | dP_orifice, differential_pressure_meter_dP
How much of the measured drop at a throat with smooth cones never comes back? | dP_venturi_tube, differential_pressure_meter_dP
Amount that passes a meter when drop and shape are known | flow_meter_discharge, differential_pressure_meter_solver
A gas grows thinner as it passes a plate with a hole; by which factor is the reading corrected? | orifice_expansibility, orifice_expansibility_1989
Hole over bore of a meter, in general | differential_pressure_meter_beta
How much air creeps into a vessel under vacuum through its seals? | vacuum_air_leakage_Seider, vacuum_air_leakage_Ryans_Croll, vacuum_air_leakage_HEI2633, vacuum_air_leakage_Coker_Worthington
A jet of water drags other water along: solve for the one thing I lack | liquid_jet_pump_ancillary
How long must a stirred pot run until it is the same everywhere? | agitator_time_homogeneous
How wide must the side stream be so that two streams blend at a T? | size_tee
How uneven is the stream behind a row of fixed blades that blend it? | COV_motionless_mixer
Area under measured points, summed up as it goes | cumulative_trapezoid
Read a value between two rows of a table. | interp
Do these numbers only ever rise? | is_increasing, is_monotonic
Scale a list so that it runs between nought and one. | fluids_normalize
Water runs over a board narrower than the brook; how much? | Q_weir_rectangular_Kindsvater_Carter, Q_weir_rectangular_SIA
Translate the Irish roughness of a channel into the French constant. | n_Manning_to_C_Chezy
Push lost by gas that rises through rings wetted from above, by Robbins' chart | Robbins
At which gas speed does a column of rings fill up with liquid? | Stichlmair_flood
Push lost in a dry pad of wire that catches droplets | dP_demister_dry_Setekleiv_Svendsen, dP_demister_dry_Setekleiv_Svendsen_lit
How many droplets does a pad of wire catch? | separation_demister_ElDessouky
How much wire skin is in a cubic metre of a pad? | specific_area_mesh
I weighed a pad of known outer size and metal; how empty is it? | voidage_experimental
Share of ground grains smaller than 50 micron, after the coal grinders' exponential rule | cdf_Rosin_Rammler
Share of ground grains smaller than a size, when the log of size follows a bell | cdf_lognormal
Share of ground grains smaller than a size by a plain power up to the top size | cdf_Gates_Gaudin_Schuhman
How fast may a gas and sand mix go before it eats the pipe, by the oil institute? | erosional_velocity
Which shop size of pipe comes next above 70 mm inside? | nearest_pipe
How thick is sheet of number 16? | t_from_gauge
Which number has wire 1.6 mm thick? | gauge_from_t
How good is a pump likely to be, from the throughput alone? | Corripio_pump_efficiency
My calculation says 37 kW; which machine is in the shop? | motor_round_size
How wide should an impeller be for this head and throughput, as a pure figure? | specific_diameter
How large a hole must a blow-off valve have for this much vapour? | API520_A_g
How large a hole must a blow-off valve have for this much boiler steam? | API520_A_steam
How large a hole must a blow-off valve have for this much water? | API520_A_l
Which lettered shop size of blow-off valve comes next above my hole? | API520_round_size
How loud is a flame on a tall stack? | VDI_3732_noise_elevated_flare, API521_noise
How fast must air go so that grain blown through a level pipe does not settle? | Rizk, Matsumoto_1974, Matsumoto_1975, Matsumoto_1977, Geldart_Ling, Schade, Weber_saltation
Push lost where steam and water go together in one pipe | two_phase_dP, Friedel, Lockhart_Martinelli, Muller_Steinhagen_Heck, Chisholm, Beggs_Brill, Gronnerud
Do gas and liquid go in slugs, layers or bubbles in my level pipe? | Taitel_Dukler_regime, Mandhane_Gregory_Aziz_regime
Push lost because gas and liquid climb together | two_phase_dP_gravitational, two_phase_dP_dz_gravitational
Push lost because a boiling stream speeds up | two_phase_dP_acceleration, two_phase_dP_dz_acceleration
How much of the pipe's cross-section is gas, when gas and liquid go together? | liquid_gas_voidage, Rouhani_1, Rouhani_2, Zivi, Steiner, Woldesemayat_Ghajar, Baroczy, Smith
How much of the pipe's cross-section is gas if both go equally fast? | homogeneous
How thick is foam of steam and water to a pump, as one fluid? | gas_liquid_viscosity, McAdams, Cicchitti, Duckler, Beattie_Whalley, Fourar_Bories, Lin_Kwok
How heavy is a mix of steam and water in the pipe, when I know the gas share? | density_two_phase
The figure X of two Americans that compares both streams' friction | Lockhart_Martinelli_Xtt
By how much is a fan-blown bank of tubes worse than pure counterflow? | Ft_aircooler
How well do ribbed tubes shed heat to air from a fan? | h_Briggs_Young, h_ESDU_high_fin, h_ESDU_low_fin, h_Ganguli_VDI
Push lost by air across tubes with tall ribs | dP_ESDU_high_fin
How much heat goes in where water boils while it runs through a narrow tube? | Liu_Winterton, Chen_Bennett, Chen_Edelstein, Lazarek_Black, Li_Wu, Sun_Mishima, Thome, Yun_Heo_Kim
How much heat goes in where refrigerant boils between chevron sheets? | h_boiling_Amalfi, h_boiling_Han_Lee_Kim, h_boiling_Huang_Sheer, h_boiling_Lee_Kang_Kim, h_boiling_Yan_Lin
How much heat goes out where vapour turns to liquid inside a level tube? | Shah, Cavallini_Smith_Zecchin, Akers_Deans_Crosser, Boyko_Kruzhilin
Wind along a flat roof: how well does it take heat away? | Nu_external_horizontal_plate, Nu_horizontal_plate_laminar_Baehr, Nu_horizontal_plate_laminar_Churchill_Ozoe, Nu_horizontal_plate_turbulent_Kreith, Nu_horizontal_plate_turbulent_Schlichting
Heat across the still air between two panes or sheets | Nu_Nusselt_Rayleigh_Hollands, Nu_Nusselt_Rayleigh_Holling_Herwig, Nu_Nusselt_Rayleigh_Probert, Nu_Nusselt_vertical_Thess
When does still liquid between a hot floor and a cold lid begin to turn over? | Rac_Nusselt_Rayleigh, Rac_Nusselt_Rayleigh_disk
How does still air cool a hot upright rod? | Nu_vertical_cylinder, Nu_vertical_cylinder_McAdams_Weiss_Saunders, Nu_vertical_cylinder_Popiel_Churchill, Nu_vertical_cylinder_Kreith_Eckert
How does still air cool a hot table top? | Nu_free_horizontal_plate, Nu_horizontal_plate_McAdams, Nu_horizontal_plate_VDI, Nu_horizontal_plate_Rohsenow
Heat to a liquid that is pumped fast through a coiled tube | helical_turbulent_Nu_Mori_Nakayama, helical_turbulent_Nu_Schmidt, helical_turbulent_Nu_Xin_Ebadian
Heat to orderly flow in a duct of four flat sides | Nu_laminar_rectangular_Shan_London
Heat to water above its end point that rises in a boiler tube | Nu_Bishop, Nu_Bringer_Smith, Nu_Gorban, Nu_Griem, Nu_Gupta, Nu_Jackson, Nu_Kitoh, Nu_Krasnoshchekov, Nu_Krasnoshchekov_Protopopov, Nu_McAdams, Nu_Mokry, Nu_Ornatsky, Nu_Petukhov, Nu_Shitsman, Nu_Swenson, Nu_Xu, Nu_Yamagata, Nu_Zhu
How much heat do rows of tubes take from a stream across them? | Nu_Zukauskas_Bejan, Nu_Grimison_tube_bank, Nu_HEDH_tube_bank, Nu_ESDU_73031
Push lost by a stream across rows of tubes | dP_Zukauskas, dP_Kern
How much is lost because liquid slips between the guide sheets and the shell? | baffle_leakage_Bell, bundle_bypassing_Bell
Heat to air and water that are pumped together through a tube, without boiling | h_two_phase, Aggour, Davis_David, Elamvaluthi_Srinivas, Groothuis_Hendal, Hughmark, Knott, Kudirka_Grosh_McFadden, Martin_Sims, Ravipudi_Godbold
By how much do thin hot layers at the wall change the heat that gets through? | wall_factor, wall_factor_Nu
How heavy is a cubic metre of brick or cork, by name? | rho_material
How much warmth does a kilo of brick or cork hold per degree? | Cp_material
How much of the beam gets through smoky gas of some depth? | grey_transmittance
Which interest per period did the bank take, from count, instalment and sum? | rate
Turn an ordinary binary code into one where neighbours differ in one bit. | bin_to_gray
Turn a code where neighbours differ in one bit back into ordinary binary. | gray_to_bin
How many different groups are there with 16 elements? | groups_count
Does every group of this size commute? | is_abelian_number
Split 12 at random into smaller whole numbers. | random_integer_partition
Smear one list over another by sums of shifted products. | convolution_int, convolution_fft, convolution_ntt
The thousandth member of a row where each is a fixed mix of those before | linrec
In how many ways can seven hats be given back so that nobody gets the own one? | subfactorial, nD
How many hands of five from 52 cards? | nC, binomial
How many ways to line up three out of ten runners? | nP
One times three times five and so on up to 15 | factorial2
In how many ways can ten people be put into groups of any size? | bell
In how many ways can ten people be put into exactly four groups? | stirling, nT
One plus a half plus a third and so on | harmonic
Rest of a number is measured from both sides of nought, within half the divisor | symmetric_residue
Which number leaves 2 when split by 3, 3 by 5 and 2 by 7? | crt, crt1, crt2
Angle of a complex number in the plane | arg, atan2
Mirror a complex number at the real line. | conjugate
Solve w times e to the w for w. | LambertW
Next whole number upwards | ceiling
The cube root of minus eight that is a plain number | real_root
Sine of x over x | sinc
The step that is nought before and one after | Heaviside
Write 7/43 as a sum of different unit fractions, as scribes on papyrus did. | egyptian_fraction
The endless nested fraction of a square root repeats; give it | continued_fraction_periodic
Hexadecimal figures of the circle's constant from the millionth on | pi_hex_digits
Does the number read the same backwards? | is_palindromic
Split a whole number into primes with their powers. | factorint
Split a whole number into primes by elliptic curves. | ecm
All whole numbers that divide 360 | divisors
How many whole numbers divide 360? | divisor_count
Does a number equal the sum of its smaller divisors? | is_perfect
Are 220 and 284 friends, each the sum of the other's divisors? | is_amicable
Add up the digits again and again until one is left. | dra
How many noughts end 100 factorial: the power of a prime in it | multiplicity_in_factorial
Is the number a square, cube or higher power of another? Give base and exponent. | perfect_power
Is it a whole number times itself? | is_square
First prime above a million | nextprime
The hundredth prime | prime
How many primes are there below a million? | sympy_primepi, sympy_primepi_2
Product of the first ten primes | primorial
Which power of 3 leaves 13 modulo 17? | discrete_log
How often must I multiply a by itself until one is left modulo n? | n_order
A number whose powers give all rests of a prime | primitive_root
Which x squared leaves a modulo a prime? | sqrt_mod, quadratic_congruence
Energy of an electron's shell in the simplest atom | E_nl, E_nl_dirac
At which slant does glass mirror no light of one polarisation? | brewster_angle
From which slant on is light in glass wholly thrown back inside? | critical_angle
How much light is thrown back and how much goes on at a border, for both polarisations? | fresnel_coefficients
At which distance must I focus so that all behind is sharp to infinity? | hyperfocal_distance
How strong is a lens, from its glass and the bending of its two faces? | lens_makers_formula
How much larger is the picture in a bent mirror? | transverse_magnification
By how much does a flat glass face turn a ray? | deviation
How many H+ and OH- does water have at 80 C: the product | Kweq_1981, Kweq_Arcis_Tremaine_Bandura_Lvov, Kweq_IAPWS
How heavy is brine with several salts? | Laliberte_density
How syrupy is brine with several salts? | Laliberte_viscosity
How well does salty water lead current? | conductivity_McCleskey, dilute_ionic_conductivity, conductivity
How well does brine carry heat? | Magomedov_mix, thermal_conductivity_Magomedov
Is trade in this compound restricted by law in some country? | legal_status
How far do two liquids' likes differ from ideal, from cohesion alone? | regular_solution_gammas_binaries
How much room do the hard cores of a molecule fill, from its groups? | Van_der_Waals_volume
How much skin do the hard cores of a molecule have, from its groups? | Van_der_Waals_area
Is this single stuff solid, liquid or gas here? | identify_phase
"""


def questions(split: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return the questions of a split ("development" or "test"), each with the functions that would serve."""
    rows = {"development": DEVELOPMENT, "test": TEST}[split].strip().splitlines()
    parted = [row.rpartition(" | ") for row in rows]
    return [(question, tuple(names.split(", "))) for question, _, names in parted]
