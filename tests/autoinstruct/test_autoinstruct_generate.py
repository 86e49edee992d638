"""Candidates: what is refused and counted, variants made by rules, meta-prompts to a scripted chat."""

import pytest

from lib.autoinstruct import (
    FEW_SHOT,
    ZERO_SHOT,
    Candidate,
    Demonstration,
    WorkedTask,
    collect,
    format_line,
    generate,
    meta_prompt,
    variants,
)
from lib.autoinstruct.study.inducer import style_of
from lib.core.chat import Reply

DEMOS = (Demonstration("2 + 2", "4"), Demonstration("3 + 9", "12"))
WORKED = {
    style: [
        WorkedTask(
            f"Reverse words like {style}.", (Demonstration("abc", "cba"),), "Write the letters of the word backwards."
        )
    ]
    for style in FEW_SHOT
    if style.startswith("worked")
}


def texts(*made):
    return [Candidate(text, "rule", "x") for text in made]


def test_unusable_candidates_are_refused_and_counted():
    made = texts("Add.", " add ", "", "...", "2 + 2", "Input: 3 + 9\nOutput: 12", "word " * 300, "Sum up the numbers.")
    found = collect(made, demonstrations=DEMOS)
    assert [c.text for c in found.candidates] == ["Add.", "Sum up the numbers."]
    assert found.refused == {"duplicate": 1, "empty": 2, "copied": 2, "too long": 1}
    assert len(found) == 2


@pytest.mark.parametrize(
    ("answers", "line"),
    [
        (["Yes", "No", "Yes", "No"], "exactly one of: No, Yes"),
        (["4", "-1.5", "1,200"], "a number only"),
        (["A", "c", "D"], "a single letter only"),
        (["[4]", "[x y]"], "between [ and ]"),
        (["Paris", "Rome", "Oslo"], "a single word only"),
        (["New York", "San Juan City"], "at most 3 words"),
    ],
)
def test_the_form_of_answers_is_read_off_the_demonstrations(answers, line):
    assert line in format_line([Demonstration("x", answer) for answer in answers])


def test_a_form_needs_demonstrations():
    with pytest.raises(ValueError, match="at least one"):
        format_line([])


def test_variants_have_a_style_each_and_keep_the_seed():
    made = variants("Add the numbers.", DEMOS)
    assert len({c.style for c in made}) == len(made) == len(collect(made))
    assert all(c.origin == "rule" for c in made)
    assert sum("Add the numbers." in c.text for c in made) == len(made) - 2  # not in format-only, examples-only


def test_a_style_is_read_off_an_instructions_form():
    assert style_of("Add the numbers.") == "one-sentence"
    assert style_of("Add the numbers. Reply briefly.") == "one-paragraph"
    assert style_of("First read, then add.") == "step-by-step"
    assert style_of("Add. For example, 1 and 2 give 3.") == "use-example"


def test_meta_prompts_hold_the_task_and_examples_of_their_set():
    for style in FEW_SHOT:
        prompt = meta_prompt(style, "Add.", DEMOS, worked=WORKED.get(style, ()))
        assert "Task: Add." in prompt
        assert "Input: 3 + 9\nOutput: 12" in prompt
        assert prompt.endswith("Instruction:")
    assert "Input:" not in meta_prompt("worked-tasks-1", "Add.", worked=WORKED["worked-tasks-1"])
    assert set(FEW_SHOT) - set(ZERO_SHOT) == {"use-example"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"style": "poem", "task": "Add."}, "no style 'poem'"),
        ({"style": "use-example", "task": "Add."}, "give demonstrations"),
        ({"style": "worked-tasks-1", "task": "Add."}, "give some"),
    ],
)
def test_bad_meta_prompts_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        meta_prompt(**arguments)


class Numbered:
    """A chat that numbers its answers and keeps how it was asked."""

    model = "numbered"

    def __init__(self):
        self.asked = []

    def complete(self, messages, decoding=None, *, attempt=0):
        self.asked.append((messages, decoding))
        return Reply(tuple(f"Instruction {len(self.asked)}.{i}" for i in range(decoding.n)))


def test_the_papers_22_and_19_candidates():
    chat = Numbered()
    few = generate(chat, "Add.", DEMOS, worked=WORKED)
    assert len(few) == 22
    assert few.candidates[0] == Candidate("Add.", "human", "human")
    assert {c.style for c in tuple(few)[1:]} == set(FEW_SHOT)
    assert len(chat.asked) == 7
    assert {(decoding.temperature, decoding.n) for _, decoding in chat.asked} == {(1.0, 3)}
    assert len(generate(Numbered(), "Add.", worked=WORKED)) == 19
