"""Candidates: what is refused and counted, rules as a baseline, meta-prompts to a scripted chat, a user's one call."""

import pytest

from lib.autoinstruct import (
    FEW_SHOT,
    ZERO_SHOT,
    Candidate,
    CandidateSet,
    Demonstration,
    Example,
    Task,
    WorkedTask,
    collect,
    format_line,
    generate,
    meta_prompts,
    optimise,
    variants,
)
from lib.autoinstruct.candidates import gives_away, shows, stands_in
from lib.autoinstruct.generation import meta_prompt
from lib.core.chat import Reply

DEMOS = (Demonstration("2 + 2", "4"), Demonstration("3 + 9", "12"))


def texts(*made):
    return [Candidate(text, "rule", "x") for text in made]


def test_unusable_candidates_are_refused_and_counted():
    made = texts("Add.", " add ", "", "...", "2 + 2", "Input: 3 + 9\nOutput: 12", "word " * 300, "Sum up the numbers.")
    found = collect(made, demonstrations=DEMOS)
    assert [c.text for c in found.candidates] == ["Add.", "Sum up the numbers."]
    assert found.refused == {"duplicate": 1, "empty": 2, "copied": 2, "too long": 1}
    assert len(found) == 2
    assert tuple(found) == found[:] == (found[0], found[1])  # a sequence


def test_a_human_instruction_is_never_refused_however_long():
    seed = Candidate("word " * 300, "human", "human")
    found = collect([seed, Candidate("Add.", "model", "x")])
    assert found.human.text == seed.text.strip()
    assert collect([Candidate("2 + 2", "human", "human")], demonstrations=DEMOS).human.text == "2 + 2"
    with pytest.raises(ValueError, match="no human"):
        _ = CandidateSet((Candidate("Add.", "model", "x"),)).human


def test_a_demonstration_or_an_answer_in_an_instruction_is_told():
    assert shows("Such as 2 + 2, which gives 4.", DEMOS)
    assert not shows("Add numbers such as 2 + 2.", DEMOS)
    assert stands_in("-1", "from -1 on")
    assert not stands_in("-1", "add 1")
    assert not stands_in("A", "write a letter")
    assert gives_away("Say yes.", "Yes", ("No",))
    assert not gives_away("Answer yes or no.", "Yes", ("No",))
    assert not gives_away("Say no.", "Yes", ("No",))


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
    assert sum("Add the numbers." in c.text for c in made) == len(made) - 1  # not in format-only
    assert not any(shows(c.text, DEMOS) for c in made)


def test_meta_prompts_hold_the_task_and_its_examples_as_turns():
    assert set(meta_prompts("Add.", DEMOS)) == set(FEW_SHOT)
    assert set(meta_prompts("Add.")) == set(ZERO_SHOT) == set(FEW_SHOT) - {"use-example"}
    for style, turns in meta_prompts("Add.", DEMOS).items():
        said = [turn["content"] for turn in turns]
        assert sum("Add." in text for text in said) == 1
        assert turns[-1]["role"] == "user"
        if style.startswith("worked"):
            assert said[-1].startswith("Task: Add.\nInput: 2 + 2\nOutput: 4\n")
            assert [turn["role"] for turn in turns[1::2]] == ["user"] * 3  # two worked tasks, then this one
        else:
            assert said[:5] == ["Add.", "2 + 2", "4", "3 + 9", "12"]  # so that all these styles begin alike
    assert not any("2 + 2" in turn["content"] for turns in meta_prompts("Add.").values() for turn in turns)
    own = {"mine": [WorkedTask("Reverse.", DEMOS[:1], "Write it backwards.")]}
    assert meta_prompt("mine", "Add.", worked=own)[2]["content"] == "Write it backwards."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"style": "poem", "task": "Add."}, "no style 'poem'"),
        ({"style": "use-example", "task": "Add."}, "give demonst"),
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
    few = generate(chat, "Add.", DEMOS)
    assert len(few) == 22
    assert few[0] == few.human == Candidate("Add.", "human", "human")
    assert {c.style for c in few[1:]} == set(FEW_SHOT)
    assert {c.origin for c in few[1:]} == {"model"}
    assert len(chat.asked) == 7
    assert {(decoding.temperature, decoding.n) for _, decoding in chat.asked} == {(1.0, 3)}
    assert len(generate(Numbered(), "Add.")) == 19


class Adder(Numbered):
    """Writes numbered instructions, one of which is cut off, and answers right where the instruction is number 3."""

    def complete(self, messages, decoding=None, *, attempt=0):
        if decoding.temperature == 0:
            said = [turn["content"] for turn in messages]
            return Reply((str(eval(said[-1])) if "3.0" in said[0] else "-7",))
        reply = super().complete(messages, decoding)
        return Reply(reply.texts, ("length" if len(self.asked) == 2 else "stop",) * decoding.n)


def test_one_call_writes_tries_and_scores_on_held_out_examples():
    examples = tuple(Example(f"{i} + {i}", (str(2 * i),)) for i in range(1, 7))
    task, chat = Task("sums", "Add.", DEMOS, (), examples), Adder()
    best = optimise(task, chat, chat, samples=1)
    assert best.instruction == "Instruction 3.0"
    assert (best.score, best.human_score) == (1.0, 0.0)
    assert best.refused["unfinished"] == 1
    assert len(best.table) == 7
    assert best.table["held_out"].notna().sum() == 2
    prompts = best.to_yaml(examples[:1])
    assert "Instruction 3.0" in prompts
    assert "{{input}}" in prompts
    with pytest.raises(ValueError, match="needs a model's probabilities"):
        optimise(task, chat, chat, metric="choice")
    with pytest.raises(ValueError, match="cannot be parted"):
        optimise(task, chat, chat, held_out=0.01)
    asked = len(chat.asked)
    with pytest.raises(ValueError, match="needs its tokenizer"):
        optimise(task, object(), chat)
    assert len(chat.asked) == asked
