"""Wording of questions: goals and givens out of documentation, said in other words than the documentation's.

A retriever that matches words is flattered by questions that reuse a docstring's; so each technical word with an
everyday equivalent is replaced (with a probability), and the sentence around it comes from a template.
"""

import random
import re
from collections.abc import Sequence

EVERYDAY = {
    "reynolds number": ("ratio of inertial to viscous forces",),
    "friction factor": ("flow resistance coefficient",),
    "heat transfer coefficient": ("surface conductance for heat",),
    "thermal conductivity": ("ability to conduct heat",),
    "kinematic viscosity": ("momentum diffusivity",),
    "dynamic viscosity": ("internal resistance to flow",),
    "viscosity": ("thickness in the sense of resistance to flow", "resistance to flow"),
    "density": ("mass per volume", "specific mass"),
    "superficial velocity": ("speed over the empty cross-section",),
    "velocity": ("speed",),
    "volumetric flow rate": ("volume passing per second",),
    "mass flow rate": ("mass passing per second",),
    "flow rate": ("throughput",),
    "inner diameter": ("bore",),
    "diameter": ("width across",),
    "roughness": ("unevenness",),
    "pressure drop": ("loss of pressure",),
    "pipe": ("tube", "conduit"),
    "molecular weight": ("molar mass",),
    "heat capacity": ("heat needed per degree",),
    "heat of vaporization": ("energy to boil it off",),
    "surface tension": ("tension of the interface",),
    "critical temperature": ("temperature at the critical point",),
    "critical pressure": ("pressure at the critical point",),
    "normal boiling point": ("boiling temperature at one atmosphere",),
    "boiling point": ("temperature at which it boils",),
    "melting point": ("temperature at which it melts",),
    "acentric factor": ("measure of how non-spherical the molecules are",),
    "vapor pressure": ("saturation pressure",),
    "vapor": ("gas phase",),
    "mole fraction": ("share of the moles",),
    "void fraction": ("share of empty space",),
    "enthalpy": ("heat content",),
    "efficiency": ("effectiveness",),
    "calculated": ("found",),
    "probability density": ("density of the law",),
    "probability of a value up to": ("chance of at most",),
    "probability of a value above": ("chance of more than",),
    "quantile at probability": ("value that is not exceeded with probability",),
    "continuous random variable": ("law",),
    "discrete random variable": ("law on whole numbers",),
    "cumulative distribution function": ("cumulative law",),
    "interest rate": ("rate of interest",),
    "rate of interest": ("interest",),
    "payment": ("instalment",),
    "future value": ("final balance",),
    "present value": ("value today",),
    "compounding periods": ("terms",),
    "integer": ("whole number",),
    "packed bed": ("column filled with grains",),
    "tank": ("vessel",),
    "angle": ("inclination",),
}
TEMPLATES = {
    "train": (
        "What is the {goal}{context} if {givens}?",
        "Find the {goal}{context}, given that {givens}.",
        "Suppose {givens}. Determine the {goal}{context}.",
        "{Givens}. How large is the {goal}{context}?",
        "Compute the {goal}{context} when {givens}.",
        "A measurement shows that {givens}. From this, work out the {goal}{context}.",
    ),
    "test": (
        "In a lab report {givens}. Which value does the {goal}{context} take?",
        "I need the {goal}{context}; I know that {givens}.",
        "With the following data, {givens}, evaluate the {goal}{context}.",
    ),
}
PARAPHRASED = 0.7  # probability of replacing a word that has an everyday equivalent
LEADING = re.compile(
    r"^(this (function|class|method) )?(calculates?|computes?|returns?|evaluates?|determines?|gives?|finds?|estimates?|"
    r"implements?|solves?( for)?|handles?|checks?( if| whether)?|predicts?|interpolates?|retrieves?)\b(?: or \w+)?"
    r"( the| a| an)?\s+", re.I,
)  # fmt: skip


def goal_of(returned: str, summary: str) -> str:
    """What a question asks for: the result as documented, or the summary without its verb; "" where neither serves."""
    text = returned if 3 < len(returned) and returned not in ("float", "result", "scalar") else LEADING.sub("", summary)
    return first_clause(text, 60)


def context_of(summary: str, goal: str) -> str:
    """What tells one method from another: the summary without its verb, where it says more than the goal."""
    text = first_clause(LEADING.sub("", summary), 90)
    return text if len(text) > len(goal) + 8 else ""


def first_clause(text: str, most: int) -> str:
    """Text up to its first sentence end, parenthesis or semicolon, at most `most` characters, lower-case start."""
    text = re.split(r"[;(]|\.(?:\s|$)", text.strip())[0].strip(" ,:")
    if len(text) > most:
        text = text[:most].rsplit(" ", 1)[0]
    text = re.sub(r"\s+(as|in|of|by|and|the|a|an|or|with|from|to|for|using|is|originally)$", "", text)
    text = re.sub(
        r"\s+(as |using |with )?(shown|presented|given|described|as described|developed)?\s*(in|by)$", "", text
    )
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text


def reworded(text: str, draw: random.Random, share: float = PARAPHRASED) -> str:
    """Text with technical words replaced by everyday ones, each with probability `share`."""
    for word, others in EVERYDAY.items():
        if re.search(rf"\b{word}\b", text, re.I) and draw.random() < share:
            text = re.sub(rf"(?<!probability )\b{word}(e?s)?\b", draw.choice(others), text, flags=re.I)
    return text


def given(text: str, value: str, unit: str) -> str:
    """One known quantity, such as `the speed is 2.5 m/s`."""
    text = re.sub(r"^(the|a|an)\s+", "", first_clause(text, 50), flags=re.I)
    return f"the {text} is {value}{f' {unit}' if unit else ''}"


def sentence(goal: str, context: str, givens: Sequence[str], *, split: str, draw: random.Random) -> str:
    """A question from one of the split's templates, the known quantities in random order."""
    known = list(givens)
    draw.shuffle(known)
    listed = ", ".join(known[:-1]) + (" and " if len(known) > 1 else "") + known[-1]
    template = draw.choice(TEMPLATES[split])
    goal = re.sub(r"^(the|a|an)\s+", "", goal, flags=re.I)
    context = f" ({context})" if context else ""
    return template.format(goal=goal, context=context, givens=listed, Givens=listed[:1].upper() + listed[1:])
