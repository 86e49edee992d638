"""Quantities in text: numbers as people write them, units by Pint, and whether an answer is the wanted one.

2.5, 1,250.5, 2.00 × 10^4, 1.5e-3, 10⁻⁶, 3/4, 5 %, 373K, 20 kPa. A number with a zero denominator is no number.
"""

import functools
import math
import re
from dataclasses import dataclass
from typing import Any

RELATIVE = 0.01
MANTISSA = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
# Times a power of ten, as in 2.00 × 10^4, 2x10**4, 2 \times 10^{4}; superscripts are written as ^ before.
TIMES = r"\s*(?:[×x*·]|\\times|\\cdot)\s*10\s*(?:\^|\*\*|(?=-))\s*[({]?\s*([-+]?\d+)\s*[)}]?"
NUMBER = re.compile(rf"([-+]?{MANTISSA})(?:{TIMES})?")
POWER = re.compile(rf"([-+]?{MANTISSA})\s*(?:\^|\*\*)\s*[({{]?\s*([-+]?\d+(?:\.\d+)?)\s*[)}}]?")
FRACTION = re.compile(rf"([-+]?{MANTISSA})\s*/\s*({MANTISSA})")
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
UNIT_AFTER = re.compile(
    r"\s?(%|per ?cent\b|deg(?:rees?)? (?:[CF]|[Cc]elsius|[Ff]ahrenheit)\b|°?[A-Za-zµμΩ]+"
    r"(?:(?:\^|\*\*)-?\d|(?<=[*/·])\([A-Za-zµμΩ\d^*/· -]+\)|[*/·()]|[A-Za-zµμΩ%]|(?<=[A-Za-z)])-?\d(?!\d)"
    r"| per (?=[A-Za-zµμΩ]))*)"
)
TEMPERATURE = re.compile(r"(?:°|deg(?:rees?)?) ?([CF])(?:elsius|ahrenheit)?|([CF])(?:elsius|ahrenheit)", re.I)
WORDS = ("as", "at", "a", "are")  # of a sentence, though Pint has units of these names
ENDED = re.compile(r"\s*(?:$|[^\w\s]|and\b)")  # after an inch, which is a word of a sentence elsewhere
PERCENT = ("%", "percent", "per cent", "pct")
SPELLED = {"%": "percent", "per cent": "percent", "pct": "percent", "°": "degree", "degrees": "degree", "Ω": "ohm",
           "$": "", "dollars": "", "-": "", "unitless": ""}  # fmt: skip
NO_NUMBER = {"nan", "inf", "-inf", "+inf", "infinity", "-infinity", "none", "null", ""}


@dataclass(frozen=True)
class Quantity:
    """A number (None where the text is no quantity) and its unit as written."""

    value: float | None
    unit: str = ""


def plain_signs(text: str) -> str:
    """Write superscripts as ^ and typographic minus signs as -."""
    raised = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda found: "^" + found[0].translate(SUPERSCRIPTS), text)
    return raised.replace("−", "-").replace("–", "-")


def leading_number(text: str) -> tuple[float | None, int]:
    """Read the number that a text begins with, and where it ends; None for one that has no value, such as 1/0."""
    for pattern, value in ((FRACTION, _fraction), (POWER, _power), (NUMBER, _scaled)):
        found = pattern.match(text)
        if found:
            return value(found), found.end()
    return None, 0


def _float(text: str) -> float:
    return float(text.replace(",", ""))


def _fraction(found: re.Match[str]) -> float | None:
    below = _float(found[2])
    return _float(found[1]) / below if below else None


def _power(found: re.Match[str]) -> float | None:
    try:
        power = _float(found[1]) ** float(found[2])
    except (OverflowError, ZeroDivisionError):
        return None
    return power if isinstance(power, float) else None  # a root of a negative number is complex


def _scaled(found: re.Match[str]) -> float:
    mantissa, _, exponent = found[1].replace(",", "").lower().partition("e")
    return float(f"{mantissa}e{int(exponent or 0) + int(found[2] or 0)}")  # read at once: 2.3 × 10^4 is 23000 exactly


def quantity(answer: Any) -> Quantity:
    """Read a quantity out of an answer such as 2.5, "2.5 m/s", "1/4" or "2 × 10^4 Pa"; none where it is a sentence."""
    if isinstance(answer, (int, float)):
        return Quantity(float(answer))
    text = plain_signs(str(answer)).strip().strip("[]$").strip()
    value, end = leading_number(text)
    unit = text[end:].strip(" .")
    if value is None or re.search(r"\d{2,}|\s\d|[?!,;=]|\s\w+\s\w+", unit) or unit[:1] in ("/", "+", "*"):
        return Quantity(None)
    return Quantity(value, unit)


def right(given: Any, wanted: Any, *, unit: str = "", relative: float = RELATIVE) -> bool:
    """Whether an answer (a value, or text that may end with a unit) is the wanted one; `unit` is the wanted one's own.

    Vectors and tables are compared item by item. A unit on one side only is ignored (a percentage is also read as a
    share); two units that cannot be converted are wrong. Truth values and texts must agree but for case and spacing. A
    wanted 0 allows an absolute error of `relative`. What is not a number (NaN, infinity, a zero denominator) is wrong.
    """
    if isinstance(wanted, bool) or isinstance(given, bool):
        return given is wanted or _normal(str(given)) == _normal(str(wanted))
    if isinstance(wanted, (list, tuple)):
        listed = isinstance(given, (list, tuple)) and len(given) == len(wanted)
        return listed and all(right(g, w, unit=unit, relative=relative) for g, w in zip(given, wanted, strict=True))
    if isinstance(wanted, dict):
        same = isinstance(given, dict) and set(given) == set(wanted)
        return same and all(right(given[k], wanted[k], unit=unit, relative=relative) for k in wanted)
    target, value = quantity(wanted), quantity(given)
    if target.value is None or value.value is None:
        return _normal(str(given)) not in NO_NUMBER and _normal(str(given)) == _normal(str(wanted))
    readings = [converted(value.value, value.unit, target.unit or unit)]
    if value.unit in PERCENT and not (target.unit or unit):
        readings.append(value.value / 100)
    return any(r is not None and close(r, target.value, relative=relative) for r in readings)


def close(value: float, wanted: float, *, relative: float = RELATIVE) -> bool:
    """Whether a number is within the relative tolerance (absolute where 0 is wanted); never for NaN."""
    if not (math.isfinite(value) and math.isfinite(wanted)):
        return False
    return abs(value - wanted) <= relative * (abs(wanted) or 1.0) * (1 + 1e-12)


def converted(value: float, unit: str, wanted: str) -> float | None:
    """Convert a value to another unit; unchanged where one of them is missing or unknown, None where they disagree.

    C and F are degrees where coulomb and farad cannot be converted.
    """
    if not unit or not wanted or unit == wanted:
        return value
    from pint import DimensionalityError

    one, other = unit_of(unit), unit_of(wanted)
    if one is None or other is None:
        return value if _normal(unit) == _normal(wanted) else None
    try:
        return float(registry().Quantity(value, one).to(other).magnitude)
    except DimensionalityError:
        return converted(value, f"deg{unit}", wanted) if unit in ("C", "F") else None


def in_unit(value: float, unit: str, wanted: str) -> float | None:
    """Convert as `converted` does, and a percentage into a share where no unit is wanted."""
    return converted(value, unit, wanted or ("dimensionless" if unit in PERCENT else ""))


@functools.cache
def registry() -> Any:
    """Make Pint's registry of units, once."""
    from pint import UnitRegistry

    return UnitRegistry(autoconvert_offset_to_baseunit=True)


@functools.cache
def unit_of(text: str) -> Any:
    """Pint's unit of a text such as "kPa", "W/(m^2*K)", "cm2", "km per hour" or "%"; None where it is none."""
    degrees = TEMPERATURE.fullmatch(text)
    text = f"deg{(degrees[1] or degrees[2]).upper()}" if degrees else SPELLED.get(text, text)
    text = re.sub(r"(?<=[A-Za-zµμΩ])(-?\d)(?![\w.])", r"^\1", text.replace(" per ", "/"))
    try:
        return registry().parse_units(text.replace("^", "**"))
    except Exception as error:  # pint's parser raises its own kinds, and Python's, for text that is no unit
        if isinstance(error, (ValueError, TypeError, AttributeError, SyntaxError, AssertionError, KeyError)) or type(
            error
        ).__module__.startswith(("pint", "tokenize")):
            return None
        raise


def stated_unit(text: str) -> str:
    """Unit that a text begins with, in the question after a number ("" where it begins with none).

    Letters that touch the number (373K, 5%) count where they are a unit; so does the word after a space, and what it is
    per, unless they are words of the sentence.
    """
    found = UNIT_AFTER.match(text)
    if not found or found[1].lower() in ("st", "nd", "rd", "th"):
        return ""
    for unit in (found[1].rstrip("."), found[1].partition(" per ")[0]):
        meant = unit not in WORDS and (unit != "in" or ENDED.match(text, found.start(1) + len(unit)))
        if meant and unit_of(unit) is not None:
            return unit
    return ""


def _normal(text: str) -> str:
    return re.sub(r"\s+|^['\"]|['\"]$", "", text.casefold())
