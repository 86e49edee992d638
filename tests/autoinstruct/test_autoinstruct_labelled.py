"""Labelled tasks: arrays in the right order, controls kept out of the choice, and what a choice is worth."""

import numpy as np
import pandas as pd
import pytest

from lib.autoinstruct import (
    Candidate,
    Demonstration,
    Example,
    LabelledTask,
    LocalChat,
    Task,
    WorkedTask,
    generate,
    label_task,
)
from lib.autoinstruct.generation import STYLES
from lib.autoinstruct.study.baselines import transferred_best

TASK = Task(
    "sums", "Add.", (Demonstration("1 + 1", "2"),), (), (Example("2 + 2", ("4",)), Example("What is 3 + 9?", ("12",)))
)
CANDIDATES = (Candidate("Add.", "human", "human"), Candidate("Answer with a number only.", "rule", "format-only"))
EMPTY = Candidate("", "control", "empty")


@pytest.fixture(scope="module")
def one(lm):
    frame = label_task(*lm, TASK, (*CANDIDATES, EMPTY), max_new_tokens=3, progress=False)
    return LabelledTask(TASK, CANDIDATES, frame, ("empty",))


def test_metrics_are_examples_by_candidates_and_controls_stand_apart(one, lm):
    metric = one.metric("log_prob")
    assert metric.shape == (2, 2)
    assert one.control("empty", "log_prob").shape == (2,)
    swapped = label_task(*lm, TASK, CANDIDATES[::-1], max_new_tokens=3, progress=False)
    again = LabelledTask(TASK, CANDIDATES[::-1], swapped)
    np.testing.assert_allclose(again.metric("log_prob")[:, ::-1], metric, atol=1e-3)
    assert again.human == 1
    assert one.human == 0


def test_a_table_holds_what_rankers_need_and_a_choice_has_a_value(one):
    table = one.table("rouge_l")
    assert table.inputs == ("2 + 2", "What is 3 + 9?")
    assert len(table.candidates) == 2
    metric = one.metric("log_prob")
    assert one.value(np.array([0, 1]), "log_prob") == pytest.approx((metric[0, 0] + metric[1, 1]) / 2)


def test_demonstrations_change_the_labels(one, lm):
    few = label_task(*lm, TASK, CANDIDATES, demonstrations=TASK.demonstrations, max_new_tokens=3, progress=False)
    assert not np.allclose(few["log_prob"], one.frame["log_prob"][:4])


def test_the_gain_of_the_best_carries_over_or_not():
    better = np.array([[0.0, 1.0]] * 4)
    assert transferred_best(better, 0) == 1
    odd_even = np.array([[0.0, 1.0], [0.0, -1.0]] * 2)  # what helps one half hurts the other
    assert transferred_best(odd_even, 0) == -0.5
    with pytest.raises(ValueError, match="two examples"):
        transferred_best(better[:1], 0)


def test_a_local_model_answers_meta_prompts_and_the_same_seed_answers_the_same(lm):
    local = LocalChat(*lm)
    worked = {"worked-tasks-1": [WorkedTask("Reverse.", TASK.demonstrations, "Write it backwards.")]}
    options = {"worked": worked, "samples": 1, "max_tokens": 3}
    found = generate(local, TASK.instruction, **options)
    assert {c.style for c in found.candidates} <= {"human", *STYLES, *worked}
    assert generate(local, TASK.instruction, **options) == found


def test_frames_say_what_was_answered(one):
    assert isinstance(one.frame, pd.DataFrame)
    assert set(one.frame.columns) == {"candidate", "example", "output", "choice", "rouge_l", "exact_match", "log_prob"}
    assert one.frame["output"].map(type).eq(str).all()
