"""The science tasks of the `evals` asset as questions with a tool each: a held-out set in other people's words.

The tools (laboratory, electricity, statics, mathematics, dates) are written as a user would write functions of a field
of their own, and added to a toolset by its decorator, which runs their doctests in the sandbox. No model here was
trained on them.
"""

import random
import re
from typing import Any

from lib.sciagent.quantities import quantity, right
from lib.sciagent.sandbox import Sandbox
from lib.sciagent.tools import Toolset
from lib.zoo import load_dataset


def ph_of_acid(molarity: float, dissociation: float) -> float:
    """pH of a solution of a monoprotic acid.

    Parameters
    ----------
    molarity : float
        Molarity of the acid solution [mol/L]
    dissociation : float
        Dissociation degree of the acid, between 0 and 1

    Returns
    -------
    pH : float
        pH of the acid solution

    Examples
    --------
    >>> ph_of_acid(molarity=0.001, dissociation=1)
    3.0
    """
    import math

    return round(-math.log10(molarity * dissociation), 4)


def resistance_of_bands(colors: str) -> float:
    """Resistance of a four band resistor from the colors of its bands (two digits, multiplier, tolerance).

    Parameters
    ----------
    colors : str
        Colors of the bands, separated by spaces

    Returns
    -------
    resistance : float
        Resistance of the resistor [ohm]

    Examples
    --------
    >>> resistance_of_bands(colors='brown black brown red')
    100.0
    >>> resistance_of_bands(colors='brown black silver brown')
    0.1
    """
    names = "black brown red orange yellow green blue violet grey white".split()
    digits = {name: i for i, name in enumerate(names)} | {"gray": 8, "purple": 7}
    first, second, multiplier = colors.lower().split()[:3]
    power = {**digits, "gold": -1, "silver": -2}[multiplier]
    return round((10 * digits[first] + digits[second]) * 10.0**power, 6)


def balanced_equation(equation: str) -> str:
    """Chemical equation with balanced stoichiometric coefficients.

    Parameters
    ----------
    equation : str
        Chemical equation to balance, sides separated by =

    Returns
    -------
    balanced : str
        Balanced chemical equation

    Examples
    --------
    >>> balanced_equation(equation='Fe + Cl2 = FeCl3')
    '2Fe + 3Cl2 = 2FeCl3'
    """
    from chempy import balance_stoichiometry

    left, right = ([term.strip() for term in side.split(" + ")] for side in equation.split("="))
    coefficients = balance_stoichiometry(set(left), set(right))
    sides = []
    for terms, counts in zip((left, right), coefficients, strict=True):
        sides.append(" + ".join(f"{counts[t] if counts[t] != 1 else ''}{t}" for t in terms))
    return " = ".join(sides)


def dna_melting_temperature(sequence: str, primer: float, salt: float) -> float:
    """Melting temperature of a DNA primer by the nearest-neighbors method.

    Energies of SantaLucia and Hicks (2004), entropy corrected for salt.

    Parameters
    ----------
    sequence : str
        Primer sequence of bases
    primer : float
        Primer concentration [nM]
    salt : float
        Salt concentration [mM]

    Returns
    -------
    Tm : float
        Melting temperature of the sequence [degC]

    Examples
    --------
    >>> dna_melting_temperature(sequence='GACCGAGTTGTTGCTA', primer=500, salt=50)
    49.7
    """
    import math

    energies = {
        "AA": (-7.9, -22.2), "AT": (-7.2, -20.4), "TA": (-7.2, -21.3), "CA": (-8.5, -22.7), "GT": (-8.4, -22.4),
        "CT": (-7.8, -21.0), "GA": (-8.2, -22.2), "CG": (-10.6, -27.2), "GC": (-9.8, -24.4), "GG": (-8.0, -19.9),
    }  # fmt: skip
    enthalpy = entropy = 0.0
    for pair in (sequence[i : i + 2] for i in range(len(sequence) - 1)):
        other = pair.translate(str.maketrans("ACGT", "TGCA"))[::-1]
        h, s = energies.get(pair) or energies[other]
        enthalpy, entropy = enthalpy + h, entropy + s
    for end in (sequence[0], sequence[-1]):
        h, s = (0.1, -2.8) if end in "GC" else (2.3, 4.1)
        enthalpy, entropy = enthalpy + h, entropy + s
    entropy += 0.368 * (len(sequence) - 1) * math.log(salt * 1e-3)
    return round(1000 * enthalpy / (entropy + 1.987 * math.log(primer * 1e-9 / 2)) - 273.15, 1)


def beam_maximum(quantity: str, support: str, load_type: str, load: float, span: float) -> float:
    """Maximum bending moment or shear force of a beam under a uniformly distributed or a concentrated load.

    Parameters
    ----------
    quantity : str
        Wanted maximum, 'moment' or 'shear'
    support : str
        Kind of beam, 'simply supported' or 'cantilever'
    load_type : str
        Kind of load, 'distributed' or 'concentrated'
    load : float
        Load of the beam [kip or kip/ft]
    span : float
        Span of the beam [ft]

    Returns
    -------
    maximum : float
        Maximum bending moment or shear force of the beam

    Examples
    --------
    >>> beam_maximum(quantity='moment', support='simply supported', load_type='distributed', load=40, span=6)
    180.0
    >>> beam_maximum(quantity='shear', support='simply supported', load_type='concentrated', load=720, span=9)
    360.0
    """
    total = load * span if load_type == "distributed" else load
    arm = span / 2 if load_type == "distributed" else span
    if support == "cantilever":
        return round(total * arm if quantity == "moment" else total, 6)
    return round(total * arm / 4 if quantity == "moment" else total / 2, 6)


def determinant_of(matrix: list) -> float:
    """Determinant of a square matrix.

    Parameters
    ----------
    matrix : list
        Matrix, a list of rows

    Returns
    -------
    determinant : float
        Determinant of the matrix

    Examples
    --------
    >>> determinant_of(matrix=[3, 1])
    3.0
    """
    import numpy as np

    rows = np.array(matrix, dtype=float)
    return round(float(np.linalg.det(rows)) if rows.ndim == 2 else float(rows[0]), 6)


def weekday_of(date: str) -> str:
    """Day of the week of a date.

    Parameters
    ----------
    date : str
        Date whose day of the week is asked for, such as January 13, 2051

    Returns
    -------
    weekday : str
        Day of the week

    Examples
    --------
    >>> weekday_of(date='January 13, 2051')
    'Friday'
    """
    from datetime import datetime

    return f"{datetime.strptime(date, '%B %d, %Y'):%A}"


def years_of_withdrawals(start: float, interest: float, inflation: float, withdrawal: float) -> int:
    """Year in which the money is first not enough for a yearly inflation-adjusted withdrawal, beginning with 2023.

    Parameters
    ----------
    start : float
        Money at the beginning of 2023 [$]
    interest : float
        Interest rate a year [%]
    inflation : float
        Inflation a year [%]
    withdrawal : float
        Amount that is taken out at the end of each year, in money of today [$]

    Returns
    -------
    year : int
        First year without enough money left

    Examples
    --------
    >>> years_of_withdrawals(start=67, interest=7, inflation=7, withdrawal=9)
    2030
    """
    money, taken = start, withdrawal
    for year in range(2023, 2500):
        money, taken = money * (1 + interest / 100), taken * (1 + inflation / 100)
        if money < taken:
            return year
        money -= taken
    return 2500


SCIENCE_TOOLS = {
    "chemistry": (ph_of_acid, balanced_equation),
    "electronics": (resistance_of_bands,),
    "biology": (dna_melting_temperature,),
    "statics": (beam_maximum,),
    "mathematics": (determinant_of,),
    "dates": (weekday_of,),
    "finance": (years_of_withdrawals,),
}
TASKS = {
    "ph_calculation": "ph_of_acid", "resistor_ohm_calculator": "resistance_of_bands",
    "balance_chemical_equation": "balanced_equation", "dna_melting_calculation": "dna_melting_temperature",
    "beam_analysis": "beam_maximum", "determinant": "determinant_of", "day-of-week-from-date": "weekday_of",
    "finance_calc": "years_of_withdrawals",
}  # fmt: skip
ASKED = {
    "resistor_ohm_calculator": "What is the resistance of a four band resistor with the colors '{}'?",
    "balance_chemical_equation": "Balance the chemical equation '{}'.",
    "determinant": "What is the determinant of the matrix {}?",
}
TO_DECIMALS = {"determinant": 0.01, "ph_calculation": 0.06, "dna_melting_calculation": 0.06}  # as the tasks round


def science_toolset(sandbox: Sandbox) -> Toolset:
    """Make the toolset of the functions these tasks need, each verified by its doctests."""
    tools = Toolset()
    for domain, functions in SCIENCE_TOOLS.items():
        for function in functions:
            tools.add(sandbox=sandbox, domain=domain)(function)
    return tools


def science_tasks(each: int, *, seed: int) -> list[dict[str, Any]]:
    """Draw up to `each` rows a task: task, question, the function that serves, and the answers that count as right."""
    rows: dict[str, list[dict[str, Any]]] = {task: [] for task in TASKS}
    for row in load_dataset("evals", "all").to_list():
        if row["task"] in rows:
            text = ASKED.get(row["task"], "{}").format(" ".join(row["input"].split()))
            text = re.sub(r"\s*(Answer with a single word|Provide your).*$", "", text)
            rows[row["task"]].append(
                {"task": row["task"], "question": text, "function": TASKS[row["task"]], "ideals": list(row["ideals"])}
            )
    draw = random.Random(seed)
    return [row for task in TASKS for row in draw.sample(rows[task], min(each, len(rows[task])))]


def solved(row: dict[str, Any], value: Any) -> bool:
    """Whether a value is one of a row's answers, as exactly as the task states them."""
    if value is None:
        return False
    absolute = TO_DECIMALS.get(row["task"])
    for ideal in row["ideals"]:
        number, given = quantity(ideal).value, quantity(value).value
        if absolute is not None and number is not None and given is not None:
            if abs(number - given) <= absolute:
                return True
        elif right(value, ideal.strip("[]"), relative=1e-6):
            return True
    return False
