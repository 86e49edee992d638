"""Whether an answer is right: numbers within a tolerance, units converted, texts compared without their spacing.

Numbers follow SciBench's habit of a few per cent, here `RELATIVE`; vectors and tables of numbers are compared item by
item; a unit on one side only is ignored, two units that cannot be converted are wrong.
"""

import functools
import math
import re
from typing import Any

RELATIVE = 0.01
NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
FRACTION = re.compile(r"^\s*([-+]?\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)")
SPELLED = {"degrees": "degree", "degF": "degF", "degC": "degC"}


def right(given: Any, wanted: Any, *, unit: str = "", relative: float = RELATIVE) -> bool:
    """Whether an answer (a value, or text that may end with a unit) is the wanted one.

    `unit` is the wanted answer's own. Truth values and texts must agree exactly but for case and spacing; a wanted 0
    allows an absolute error of `relative`.
    """
    if isinstance(wanted, bool) or isinstance(given, bool):
        return given is wanted or _normal(str(given)) == _normal(str(wanted))
    if isinstance(wanted, (list, tuple)):
        listed = isinstance(given, (list, tuple)) and len(given) == len(wanted)
        return listed and all(right(g, w, unit=unit, relative=relative) for g, w in zip(given, wanted, strict=True))
    if isinstance(wanted, dict):
        same = isinstance(given, dict) and set(given) == set(wanted)
        return same and all(right(given[k], wanted[k], unit=unit, relative=relative) for k in wanted)
    target, target_unit = quantity(wanted)
    value, value_unit = quantity(given)
    if target is None or value is None:
        return given is not None and _normal(str(given)) == _normal(str(wanted))
    value = converted(value, value_unit, target_unit or unit)
    return value is not None and close(value, target, relative=relative)


def close(value: float, wanted: float, *, relative: float = RELATIVE) -> bool:
    """Whether a number is within the relative tolerance (absolute where 0 is wanted); never for NaN."""
    if not (math.isfinite(value) and math.isfinite(wanted)):
        return False
    return abs(value - wanted) <= relative * (abs(wanted) or 1.0) * (1 + 1e-12)


def quantity(answer: Any) -> tuple[float | None, str]:
    """Number and unit of an answer such as 2.5, "2.5 m/s" or "1/4"; no number where a text is more than that."""
    if isinstance(answer, (int, float)):
        return float(answer), ""
    text = str(answer).strip().strip("[]$").strip()
    fraction = FRACTION.match(text)
    if fraction and float(fraction[2]):
        return float(fraction[1]) / float(fraction[2]), text[fraction.end() :].strip()
    found = NUMBER.match(text)
    if not found:
        return None, ""
    unit = text[found.end() :].strip(" .")
    if re.search(r"\d{2,}|[?!,;]|\s\w+\s\w+", unit):
        return None, ""  # a sentence or a list, not a quantity
    return float(found[0].replace(",", "")), unit


def converted(value: float, unit: str, wanted: str) -> float | None:
    """A value in another unit; unchanged where one of the two is missing or unknown, None where they do not convert."""
    if not unit or not wanted or unit == wanted:
        return value
    from pint import DimensionalityError

    one, other = _unit(unit), _unit(wanted)
    if one is None or other is None:
        return value if _normal(unit) == _normal(wanted) else None
    try:
        return float(registry().Quantity(value, one).to(other).magnitude)
    except DimensionalityError:
        return None


@functools.cache
def registry() -> Any:
    """Pint's registry of units, made once."""
    from pint import UnitRegistry

    return UnitRegistry(autoconvert_offset_to_baseunit=True)


def _unit(text: str) -> Any:
    from pint import UndefinedUnitError

    try:
        return registry().parse_units(SPELLED.get(text, text).replace("^", "**"))
    except (UndefinedUnitError, ValueError, TypeError, AttributeError, SyntaxError):
        return None
    except Exception as error:  # pint's parser raises its own kinds for text that is no unit
        if type(error).__module__.startswith(("pint", "tokenize")):
            return None
        raise


def _normal(text: str) -> str:
    return re.sub(r"\s+|^['\"]|['\"]$", "", text.casefold())
