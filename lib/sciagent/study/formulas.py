# ruff: noqa: E501 - one formula a line
"""Questions that a line of arithmetic answers: no function helps, and a program should call none.

Formulas of school physics, chemistry, electricity, geometry and finance; training and test have different ones.
"""

import ast
import random
from dataclasses import dataclass

from lib.sciagent.program import BUILTINS, MATHS, checked
from lib.sciagent.study.questions import Question


@dataclass(frozen=True)
class Formula:
    """A question with places for numbers, the expression that answers it, and the range of each number."""

    text: str
    expression: str
    ranges: dict[str, tuple[float | int, float | int]]
    unit: str
    domain: str


def _f(text: str, expression: str, unit: str, domain: str, **ranges: tuple[float | int, float | int]) -> Formula:
    return Formula(text, expression, ranges, unit, domain)


FORMULAS: dict[str, tuple[Formula, ...]] = {
    "train": (
        _f("A cart of {m} kg moves at {v} m/s. What is its kinetic energy?", "0.5 * {m} * {v}**2", "J", "physics", m=(1, 90), v=(1, 30)),
        _f("A stone of {m} kg is lifted by {h} m where gravity is 9.81 m/s^2. Find the work done.", "{m} * 9.81 * {h}", "J", "physics", m=(1, 60), h=(1, 80)),
        _f("A car covers {d} km in {t} h. What is its mean speed?", "{d} / {t}", "km/h", "physics", d=(20, 600), t=(1, 9)),
        _f("A force of {f} N acts on a body of {m} kg. How large is the acceleration?", "{f} / {m}", "m/s^2", "physics", f=(1, 500), m=(1, 90)),
        _f("A body falls freely for {t} s (g = 9.81 m/s^2). How far does it fall?", "0.5 * 9.81 * {t}**2", "m", "physics", t=(0.5, 9)),
        _f("A spring of stiffness {k} N/m is stretched by {x} m. What energy does it store?", "0.5 * {k} * {x}**2", "J", "physics", k=(10, 900), x=(0.01, 0.9)),
        _f("A current of {i} A flows through {r} ohm. What is the voltage?", "{i} * {r}", "V", "electricity", i=(0.1, 20), r=(1, 900)),
        _f("A lamp at {u} V draws {i} A. What power does it take?", "{u} * {i}", "W", "electricity", u=(1, 240), i=(0.1, 12)),
        _f("Resistors of {a} ohm, {b} ohm and {c} ohm are in series. What is the total resistance?", "{a} + {b} + {c}", "ohm", "electricity", a=(1, 90), b=(1, 90), c=(1, 90)),
        _f("A room is {a} m long, {b} m wide and {c} m high. What is its volume?", "{a} * {b} * {c}", "m^3", "geometry", a=(2, 12), b=(2, 9), c=(2, 5)),
        _f("A circle has a radius of {r} cm. What is its area?", "pi * {r}**2", "cm^2", "geometry", r=(1, 40)),
        _f("The legs of a right triangle are {a} m and {b} m. How long is the hypotenuse?", "sqrt({a}**2 + {b}**2)", "m", "geometry", a=(1, 30), b=(1, 30)),
        _f("{n} g of a substance with molar mass {w} g/mol are weighed in. How many moles are that?", "{n} / {w}", "mol", "chemistry", n=(1, 90), w=(10, 300)),
        _f("{n} mol are dissolved to {v} L of solution. What is the concentration?", "{n} / {v}", "mol/L", "chemistry", n=(0.1, 5), v=(0.2, 5)),
        _f("A price of {p} dollars rises by {q} percent. What is the new price?", "{p} * (1 + {q} / 100)", "", "finance", p=(10, 900), q=(1, 60)),
        _f("{p} dollars earn simple interest of {q} percent a year for {n} years. How much interest is that?", "{p} * {q} / 100 * {n}", "", "finance", p=(100, 9000), q=(1, 9), n=(1, 20)),
        _f("A temperature is {t} degrees Celsius. What is it in degrees Fahrenheit?", "{t} * 9 / 5 + 32", "degF", "physics", t=(1, 99)),
    ),
    "test": (
        _f("A ball of {m} kg flies at {v} m/s. What is its momentum?", "{m} * {v}", "kg*m/s", "physics", m=(0.1, 20), v=(1, 50)),
        _f("A train starts at {u} m/s and accelerates with {a} m/s^2 for {t} s. What is its final speed?", "{u} + {a} * {t}", "m/s", "physics", u=(1, 20), a=(0.1, 3), t=(1, 30)),
        _f("A force of {f} N presses on an area of {a} m^2. What is the pressure?", "{f} / {a}", "Pa", "physics", f=(10, 900), a=(0.1, 5)),
        _f("A charge of {q} C passes in {t} s. What is the current?", "{q} / {t}", "A", "electricity", q=(1, 90), t=(1, 60)),
        _f("A heater of {r} ohm carries {i} A. What power does it give off?", "{i}**2 * {r}", "W", "electricity", r=(1, 90), i=(0.5, 12)),
        _f("A circle has a radius of {r} m. What is its circumference?", "2 * pi * {r}", "m", "geometry", r=(1, 40)),
        _f("A cylinder has a radius of {r} m and a height of {h} m. What is its volume?", "pi * {r}**2 * {h}", "m^3", "geometry", r=(0.5, 9), h=(1, 20)),
        _f("{v} L of a solution hold {n} mol. {w} L of water are added. What is the new concentration?", "{n} / ({v} + {w})", "mol/L", "chemistry", v=(0.5, 4), n=(0.1, 3), w=(0.5, 4)),
        _f("A coat of {p} dollars is sold at a discount of {q} percent. What does it cost now?", "{p} * (1 - {q} / 100)", "", "finance", p=(20, 400), q=(5, 60)),
        _f("{p} dollars grow by {q} percent a year, compounded yearly, for {n} years. What is the balance?", "{p} * (1 + {q} / 100)**{n}", "", "finance", p=(100, 9000), q=(1, 9), n=(2, 12)),
    ),
}  # fmt: skip


def of_formulas(number: int, *, split: str, seed: int) -> list[Question]:
    """Ask questions of a split's formulas in turn, with their programs and answers."""
    draw = random.Random(f"{seed}/{split}/formulas")
    questions = []
    for i in range(number):
        formula = FORMULAS[split][i % len(FORMULAS[split])]
        values = {name: _number(low, high, draw) for name, (low, high) in formula.ranges.items()}
        program = f"answer = {formula.expression.format(**values)}"
        goal = formula.text.rsplit("?", 1)[0].rsplit(". ", 1)[-1]
        questions.append(Question(
            formula.text.format(**values), "No function is needed: use arithmetic.", program, (), evaluated(program),
            formula.unit, formula.domain, f"formula {i % len(FORMULAS[split])}", goal,
        ))  # fmt: skip
    return questions


def _number(low: float | int, high: float | int, draw: random.Random) -> str:
    if low >= 1 and draw.random() < 0.5 or high >= 100:
        return str(draw.randint(int(low), int(high)))
    return f"{draw.uniform(low, high):.3g}"


def evaluated(program: str) -> float:
    """Evaluate `answer` in a program of arithmetic that we wrote ourselves (checked all the same)."""
    import builtins
    import math

    tree = checked(program, functions=())
    known = {n: getattr(builtins, n, None) or getattr(math, n) for n in (*BUILTINS, *MATHS)}
    (assigned,) = tree.body
    assert isinstance(assigned, ast.Assign)
    return float(eval(compile(ast.Expression(assigned.value), "<formula>", "eval"), {"__builtins__": {}}, known))
