"""APE's search against a scripted paraphraser and score; the prompt and the batches of the local model."""

import numpy as np
import pytest

from lib.autoinstruct import Candidate
from lib.autoinstruct.study import baselines
from lib.autoinstruct.tasks import Demonstration
from lib.core.chat import Reply

DEMOS = (Demonstration("2 + 2", "4"), Demonstration("3 + 9", "12"))
POOL = [Candidate(text, "model", "one-sentence") for text in ("a", "bbb", "cc")]


def lengths(task, candidates):
    """The longer, the better; the second task likes the shorter."""
    return np.array([len(c.text) * (-1 if task else 1) for c in candidates], dtype=float)


class Script:
    """Writes two variants of each instruction, one letter longer and shorter, and notes what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, texts, number):
        self.asked.append((number, list(texts)))
        return [[text + text[0], text[:-1]] for text in texts]


def test_the_best_are_varied_and_the_best_variant_wins():
    script = Script()
    long, short = baselines.search([POOL, POOL], [DEMOS, DEMOS], lengths, script, rounds=2, keep=1)
    assert script.asked == [(1, ["bbb", "a"]), (2, ["bbbb", "a"])]  # both tasks in one call; the best of all are kept
    assert [c.text for c in long.candidates] == ["a", "bbb", "cc", "bbbb", "bb", "bbbbb"]
    assert long.born == (0, 0, 0, 1, 1, 2)  # 'bbb' again is a duplicate
    assert long.candidates[long.best()] == Candidate("bbbbb", "APE", "round 2")
    assert [long.candidates[long.best(after=n)].text for n in range(3)] == ["bbb", "bbbb", "bbbbb"]
    assert short.candidates[short.best()].text == "a"  # 'aa' is worse, '' unusable
    assert long.scores.tolist() == lengths(0, long.candidates).tolist()


def test_without_rounds_the_search_is_the_selection():
    script = Script()
    (found,) = baselines.search([POOL], [DEMOS], lengths, script, rounds=0)
    assert found.candidates == tuple(POOL)
    assert found.best() == 1
    assert script.asked == []


def test_more_rounds_are_never_worse_by_the_search_score():
    (found,) = baselines.search([POOL], [DEMOS], lengths, Script(), rounds=3, keep=2)
    values = [found.scores[found.best(after=number)] for number in range(4)]
    assert values == sorted(values)


def test_copies_of_a_demonstration_are_no_variants():
    (found,) = baselines.search([POOL], [DEMOS], lengths, lambda texts, _: [["2 + 2", "12"] for _ in texts], rounds=1)
    assert found.candidates == tuple(POOL)


def test_an_empty_pool_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        baselines.search([POOL, []], [DEMOS, DEMOS], lengths, Script(), rounds=1)


class Quoting:
    """A chat that repeats the instruction it is to vary, with a label and quotation marks."""

    def complete_many(self, questions, decoding):
        said = [q.splitlines()[2].removeprefix("Input: ") for q in questions]
        return [Reply(tuple(f'Output: "{text} {i} {decoding.seed}"' for i in range(decoding.n))) for text in said]


def test_a_generator_is_asked_for_variations_that_keep_the_meaning():
    write = baselines.paraphraser(Quoting(), count=2, seed=5)
    assert write(["Add."], 1) == [['Output: "Add. 0 5"', 'Output: "Add. 1 5"']]
    (found,) = baselines.search([POOL[:1]], [DEMOS], lengths, write, rounds=1)
    assert found.candidates[-1].text == "a 1 5"  # without label and quotation marks
