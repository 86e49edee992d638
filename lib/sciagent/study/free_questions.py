# ruff: noqa: E501 - a question a line
"""Questions worded freely, by hand, in nobody's docstring's words, each with the functions that would serve it.

Each names a quantity as a person with a problem would. Several functions serve where a quantity has several methods and
the question names none; a question counts as found when one of them is. No library module is on both sides of the split:
`DEVELOPMENT` may be looked at while retrieval is changed, `TEST` is for the end.
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
"""


def questions(split: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return the questions of a split ("development" or "test"), each with the functions that would serve."""
    rows = {"development": DEVELOPMENT, "test": TEST}[split].strip().splitlines()
    parted = [row.rpartition(" | ") for row in rows]
    return [(question, tuple(names.split(", "))) for question, _, names in parted]
