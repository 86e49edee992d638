"""Functions whose documentation gives a signature but no doctest that serves: called with plain numbers instead.

Numbers are tried in order until some give a finite answer, twice the same (what draws at random is no tool).
"""

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from .records import is_answer, parameters_of, record_of, timed
from .values import plain

TRIED = (
    (0.5,),
    (2,),
    (0.5, 1.5),
    (2, 1.5),
    (3, 5),
    (0.5, 1.5, 2.5),
    (2, 3, 0.5),
    (0.2, 0.3, 0.4, 0.5),
    (2, 1, 0.5, 0.3),
)


def special_functions(module: str) -> list[dict[str, Any]]:
    """Records of a module's array functions (NumPy ufuncs), called with plain numbers."""
    import numpy as np

    found = importlib.import_module(module)
    records = []
    for name in sorted(dir(found)):
        function = getattr(found, name)
        if isinstance(function, np.ufunc) and function.nout == 1 and function.__doc__ and not name.startswith("_"):
            names = [n.strip() for n in function.__doc__.split("(", 1)[1].split(")", 1)[0].split(",")][: function.nin]
            record = record_of(f"{module}:{name}", name, function, _tried_calls(function, names), parameters=names)
            records += [record] if record else []
    return records


TYPICAL = {
    "rate": 0.05, "nper": 12, "pmt": -100.0, "pv": 1000.0, "fv": 0.0, "per": 3, "values": [-100.0, 39.0, 59.0, 55.0],
    "finance_rate": 0.1, "reinvest_rate": 0.12,
}  # fmt: skip


def by_signature(module: str) -> list[dict[str, Any]]:
    """Records of a module's functions all of whose required parameters have a typical value (finance)."""
    found = importlib.import_module(module)
    records = []
    for name, function in sorted(vars(found).items()):
        if not inspect.isfunction(function) or name.startswith("_") or not function.__doc__:
            continue
        names = [p["name"] for p in parameters_of(function) if p["required"]]
        if names and all(n in TYPICAL for n in names):
            calls = _tried_calls(function, names, tried=(tuple(TYPICAL[n] for n in names),))
            record = record_of(f"{module}:{name}", name, function, calls)
            records += [record] if record else []
    return records


KINDS = {
    "pdf": "Probability density at x of",
    "pmf": "Probability that the value is k of",
    "cdf": "Probability of a value up to x under",
    "sf": "Probability of a value above x under",
    "ppf": "Quantile at probability q of",
}


def distributions(module: str) -> list[dict[str, Any]]:
    """Records of `dist.pdf`, `.cdf`, `.sf` and `.ppf` of a module's probability distributions."""
    found = importlib.import_module(module)
    records = []
    for name in sorted(dir(found)):
        law = getattr(found, name)
        if not hasattr(law, "shapes") or not hasattr(law, "ppf") or name.startswith("rv_"):
            continue
        shapes = [s.strip() for s in law.shapes.split(",")] if law.shapes else []
        title = law.__doc__.strip().splitlines()[0].rstrip(".")
        for kind in ("pdf" if hasattr(law, "pdf") else "pmf", "cdf", "sf", "ppf"):
            first = {"ppf": "q", "pmf": "k"}.get(kind, "x")
            doc = f"{KINDS[kind]} {title[0].lower()}{title[1:]}.\n\n{_shape_notes(law, shapes, first)}"
            names, function = [first, *shapes], getattr(law, kind)
            calls = _tried_calls(function, names, quantile=kind == "ppf")
            record = record_of(f"{module}:{name}.{kind}", f"{name}_{kind}", function, calls, parameters=names, doc=doc)
            records += [record] if record else []
    return records


def _shape_notes(law: Any, shapes: list[str], first: str) -> str:
    what = {"q": "Probability, between 0 and 1", "k": "Whole number", "x": "Value"}[first]
    lines = ["Parameters", "----------", f"{first} : float", f"    {what}"]
    for shape in shapes:
        lines += [f"{shape} : float", f"    Shape parameter {shape} of the {law.name} distribution"]
    return "\n".join(lines)


def _tried_calls(
    function: Any, names: list[str], *, quantile: bool = False, tried: tuple[tuple, ...] = TRIED
) -> Iterator[dict[str, Any]]:
    for numbers in tried:
        if len(numbers) != len(names):
            continue
        given = (0.3, *numbers[1:]) if quantile else numbers
        value, ran = timed(lambda given=given: function(*given))
        again, _ = timed(lambda given=given: function(*given))  # a function that draws at random is no tool
        if ran and is_answer(value) and plain(value) == plain(again):
            yield {"arguments": dict(zip(names, given, strict=True)), "value": plain(value), "verified": True}
