"""The experiment's tables: every way's picks lie between the bounds, gains are paired, and what a choice gives away."""

import numpy as np
import pandas as pd
import pytest

from lib.autoinstruct import Candidate, Example, LabelledTask, Task
from lib.autoinstruct.study import comparison

CANDIDATES = (
    Candidate("Add.", "human", "human"),
    Candidate("Add. Answer with a number only.", "rule", "format-line"),
    Candidate("Sum up, such as to 12.", "inducer", "one-sentence"),
)
TASK = Task("sums", "Add.", (), (), (Example("2 + 2", ("4",)), Example("3 + 9", ("12", "twelve"))))
METRIC = np.array([[-3.0, -1.0, -2.0], [-2.0, -4.0, -1.0]])  # [examples, candidates]


def labelled(metric=METRIC, controls=("empty",)):
    wide = np.column_stack([metric, np.full((len(metric), len(controls)), -5.0)])
    example, candidate = (places.ravel() for places in np.indices(wide.shape))
    values = {"output": "x", "rouge_l": wide.ravel() + 6, "exact_match": 0.0, "log_prob": wide.ravel()}
    task = Task(TASK.name, TASK.instruction, (), (), TASK.examples[: len(metric)])
    return LabelledTask(
        task, CANDIDATES, pd.DataFrame({"candidate": candidate, "example": example, **values}), controls
    )


@pytest.fixture
def picks():
    scores = np.array([[0.0, 2.0, 1.0], [0.0, 1.0, 3.0]])
    rankers = {name: scores for name in ("listwise", "pointwise", "binary", "frozen head")}
    judged = pd.DataFrame({"validated": [-1.0, -3.0, -2.0], "asked": [0.0, 1.0, -1.0]})
    return comparison.picks_of(labelled(), rankers, judged, [labelled().table("log_prob")])


def test_every_way_picks_by_its_own_scores(picks):
    assert {name: pick.tolist() for name, pick in picks.items()} == {
        "oracle": [1, 2], "worst": [0, 1], "human": [0, 0], "ranker": [1, 2], "ranker, per task": [2, 2],
        "ranker, pointwise": [1, 2], "ranker, binary": [1, 2], "ranker, frozen head": [1, 2], "one style": [2, 2],
        "cross-validation": [0, 0], "APE, no rounds": [2, 2], "asked": [1, 1],
    }  # fmt: skip


def test_outcomes_hold_every_way_and_what_searches_found_where_they_searched(picks):
    searched = {"APE": pd.DataFrame({"task": [1, 1], "rouge_l": [0.0, 1.0], "exact_match": 0.0, "log_prob": -9.0})}
    reached = comparison.outcomes([labelled(), labelled()], [picks, picks], searched).set_index("metric")
    log_prob = reached.loc["log_prob"]
    assert log_prob["oracle"].tolist() == [-1.0, -1.0]
    assert log_prob["random"].tolist() == pytest.approx([METRIC.mean()] * 2)
    assert log_prob["empty"].tolist() == [-5.0, -5.0]
    assert log_prob["APE"].tolist()[1] == -9.0
    assert np.isnan(log_prob["APE"].tolist()[0])


def test_gains_with_demonstrations_are_of_the_same_choices_and_examples(picks):
    one = labelled(METRIC[:1] + 1)
    gains = comparison.shot_gains([labelled()], [one], [picks], "log_prob").set_index(["shots", "method"])["gain"]
    assert gains["zero-shot", "ranker"] == gains["few-shot", "ranker"] == 2.0  # example 1 only: -1 against -3
    assert gains["few-shot", "empty"] == -5.0 + 2.0
    assert gains["zero-shot", "oracle"] >= gains["zero-shot", "random"] >= gains["zero-shot", "worst"]


def test_a_choice_that_spells_an_answer_out_is_told(picks):
    chosen = comparison.choices([labelled()], [picks]).set_index("input")
    assert chosen["given away"].to_dict() == {"2 + 2": False, "3 + 9": True}
    assert chosen["by a model"].to_dict() == {"2 + 2": False, "3 + 9": True}
    assert chosen["gain"].to_dict() == {"2 + 2": 2.0, "3 + 9": 1.0}
