"""The grammar of programs: which values a question holds, which steps are choices, and that every program parses."""

import random

import pytest

from lib.sciagent.grammar import ARITHMETIC, Choice, Free, ProgramGrammar, QuestionValues, choices_of, purpose_line
from lib.sciagent.program import checked


@pytest.mark.parametrize(("question", "numbers"), [
    ("a speed of 2.5 m/s^2 and 1.9e-05 Pa*s", ["2.5", "1.9e-05"]),
    ("-5 degC, 1,000 kg and 10% of H2O in 7732-18-5 at 3 m^-1", ["-5", "1000", "10", "3"]),
    ("on January 13, 2051. The slope is 4.", ["13", "2051", "4"]),
    ("no number", []),
])  # fmt: skip
def test_numbers_of_a_question_are_those_said_not_those_of_units_or_names(question, numbers):
    assert [n.source for n in QuestionValues(question).numbers] == numbers


def test_a_number_comes_with_the_words_that_say_what_it_is():
    found = QuestionValues(
        "What is the drag if the speed is 2.5 m/s, the bore is 1,000 mm and the angle, flat, is 3?"
    ).numbers
    assert [(n.words, n.source) for n in found] == [
        ("the speed is 2.5", "2.5"),
        ("the bore is 1,000", "1000"),
        ("the angle, flat, is 3", "3"),
    ]


def test_a_number_serves_once_while_others_are_left():
    values = QuestionValues("one is 1, two is 2.5 and two is 2.5")

    def left(kind, taken, known=()):
        return [value for _, value in values.of(kind, taken, known)]

    assert left("number", ["2.5"]) == ["1", "2.5"]
    assert left("number", ["2.5", "2.5"], ["step1"]) == ["1", "step1"]
    assert left("number", ["2.5", "2.5", "1"]) == ["1", "2.5"]
    assert left("integer", []) == ["1"]
    assert left("boolean", []) == ["True", "False"]
    assert QuestionValues("no number").of("number", []) == [("nothing", "0")]


@pytest.mark.parametrize(("said", "unit", "source"), [
    ("373K", "K", "373"), ("25 degC", "K", "298.15"), ("100 °C", "K", "373.15"), ("5%", "", "0.05"), ("5 %", "%", "5"),
    ("5 percent", "", "0.05"), ("20 kPa", "Pa", "20000"), ("2.00 × 10^4 Pa", "kPa", "20"), ("1.5x10^-3 m", "mm", "1.5"),
    ("3·10⁻² m", "m", "0.03"), ("2.5 m/s", "km/hr", "9"), ("4 mol", "kg", "4"), ("7 florps", "m", "7"),
    ("−3 m", "m", "-3"),
    ("2.5e3 W/m^2/K", "kW/m^2/K", "2.5"), ("12", "m", "12"), ("5 m^0", "", "5"),
    ("2 in both cases", "m", "2"), ("2 in, and flat", "m", "0.0508"), ("2 in", "m", "0.0508"), ("2 in^2", "in^2", "2"),
    ("5 as measured", "s", "5"), ("5 at the inlet", "Pa", "5"), ("3 a day", "s", "3"), ("3 are left", "m^2", "3"),
    ("25 C", "K", "298.15"), ("25 C", "mC", "25000"), ("77 F", "K", "298.15"), ("25 °C", "K", "298.15"),
    ("25 degrees Celsius", "K", "298.15"), ("25 deg C", "K", "298.15"), ("77 degrees Fahrenheit", "K", "298.15"),
    ("25 Celsius", "K", "298.15"), ("90 degrees", "degree", "90"), ("10 kJ/(kg K)", "J/(kg K)", "10000"),
    ("10 kJ/(kg*K)", "J/kg/K", "10000"), ("12 cm2", "m^2", "0.0012"), ("3 m3/s", "L/s", "3000"),
    ("5 s-1", "1/min", "300"), ("72 km per hour", "m/s", "20"), ("5 kg per person", "g", "5000"),
    ("9 m per s per s", "m/s^2", "9"), ("2 m (see above)", "cm", "200"),
])  # fmt: skip
def test_a_number_is_read_in_the_unit_of_its_parameter(said, unit, source):
    values = QuestionValues(f"What is it if the size is {said}?")
    assert [value for _, value in values.of("number", [], unit=unit)] == [source]
    assert not values.holds("number", [source])


def test_texts_and_lists_are_copied():
    assert QuestionValues("colors 'red blue' please").texts[0] == ("red blue", "'red blue'")
    assert ("methanol", "'methanol'") in QuestionValues("Boiling point of methanol?").texts
    assert QuestionValues("determinant of [[1, 2], [3, 4]]").lists[0][1] == "[[1, 2], [3, 4]]"


def test_a_program_is_parted_into_choices_and_what_follows(tools):
    grammar = ProgramGrammar(
        [tools["LMTD"]], "The inlet is 100, the outlet is 60.5, the cold is 30 and the end is 40.2"
    )
    found = choices_of("answer = LMTD(Thi=100, Tho=60.5, Tci=30, Tco=40.2)", grammar)
    chosen = [text for text, options in found if len(options) != 1]
    said = [f" the {w}\n    {n}={w[w.index(' is ') + 4 :]},\n" for w, n in
            (("outlet is 60.5", "Tho"), ("cold is 30", "Tci"))]  # fmt: skip
    assert chosen == [purpose_line(tools["LMTD"]), "answer = ", " the inlet is 100\n    Thi=100,\n", *said, ")\n"]
    assert "".join(text for text, _ in found).startswith(f"# use {tools['LMTD'].gives()}: LMTD\nanswer = LMTD(\n    # ")
    free = choices_of("step1 = 2 * 3\nanswer = step1 + 1", grammar)
    assert [text for text, _ in free] == [ARITHMETIC, "step1 = ", "2 * 3\n", ARITHMETIC, "answer = ", "step1 + 1\n"]


@pytest.mark.parametrize("program", [
    "answer = LMTD(Thi=99, Tho=60.5, Tci=30, Tco=40.2)", "answer = LMTD(Thi=100)", "answer = fv(100)", "x = 3",
    "answer = 3\nstep2 = 4",
])  # fmt: skip
def test_what_the_form_does_not_hold_is_refused(tools, program):
    with pytest.raises(ValueError, match="cannot be written"):
        choices_of(program, ProgramGrammar([tools["LMTD"]], "T is 100, 60.5, 30 and 40.2"))


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_chosen_is_a_program_that_calls_shown_functions(tools, seed):
    draw = random.Random(seed)
    shown = draw.sample(list(tools), 3)
    steps = ProgramGrammar(shown, draw.choice(["is 3.5 and 4, 5", "nothing known", "colors 'red blue', 7"])).steps()
    step, text = next(steps), ""
    try:
        while True:
            if isinstance(step, Choice):
                assert not any(a != b and b.startswith(a) for a in step.options for b in step.options)
                picked = draw.choice(step.options)
            else:
                assert isinstance(step, Free)
                picked = next(t for t in ("1 + 2\n", "4,\n") if step.allows(t))
                assert all(step.allows(picked[:i]) for i in range(1, len(picked) + 1))
            text += picked
            step = steps.send(picked)
    except StopIteration:
        checked(text, functions=[t.name for t in shown])
