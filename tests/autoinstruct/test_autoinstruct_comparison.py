"""The experiment's tables: every way's picks lie between the bounds, gains are paired, and what a choice gives away."""

import numpy as np
import pandas as pd
import pytest

from lib.autoinstruct import Candidate, CandidateSet, Demonstration, Example, LabelledTask, Task
from lib.autoinstruct.study import comparison

CANDIDATES = (
    Candidate("Add.", "human", "human"),
    Candidate("Add. Answer with a number only.", "model", "format-line"),
    Candidate("Sum up, such as to 12.", "model", "one-sentence"),
)
TASK = Task("sums", "Add.", (), (), (Example("2 + 2", ("4",)), Example("3 + 9", ("12", "twelve"))))
METRIC = np.array([[-3.0, -1.0, -2.0], [-2.0, -4.0, -1.0]])  # [examples, candidates]


def labelled(metric=METRIC, controls=("empty",)):
    wide = np.column_stack([metric, np.full((len(metric), len(controls)), -5.0)])
    example, candidate = (places.ravel() for places in np.indices(wide.shape))
    values = {"output": "x", "rouge_l": -wide.ravel(), "exact_match": 0.0, "log_prob": wide.ravel()}
    values["choice"] = wide.ravel() / 10
    task = Task(TASK.name, TASK.instruction, (), (), TASK.examples[: len(metric)])
    return LabelledTask(
        task, CANDIDATES, pd.DataFrame({"candidate": candidate, "example": example, **values}), controls
    )


@pytest.fixture
def picks():
    scores = np.array([[0.0, 2.0, 1.0], [0.0, 1.0, 3.0]])
    rankers = {name: scores for name in ("listwise", "pointwise", "binary")}
    judged = pd.DataFrame({"validated": [-1.0, -3.0, -2.0], "asked": [0.0, 1.0, -1.0]})
    return comparison.picks_of(labelled(), rankers, judged, [labelled().table("log_prob")])


def test_every_way_picks_by_its_own_scores(picks):
    assert {name: pick.tolist() for name, pick in picks.items()} == {
        "human": [0, 0], "ranker": [1, 2], "ranker, per task": [2, 2], "ranker, pointwise": [1, 2],
        "ranker, binary": [1, 2], "majority style": [2, 2], "cross-validation": [0, 0], "asked": [1, 1],
    }  # fmt: skip


def test_outcomes_hold_every_way_and_what_searches_found_where_they_searched(picks):
    columns = {"rouge_l": [0.0, 1.0], "exact_match": 0.0, "log_prob": -9.0, "choice": 0.5}
    searched = {"APE": pd.DataFrame({"task": "sums", **columns})}
    reached = comparison.outcomes([labelled()], [picks], searched).set_index("metric")
    log_prob = reached.loc["log_prob"]
    assert (log_prob["oracle"], log_prob["worst"]) == (-1.0, -3.5)
    assert reached.loc["rouge_l", "oracle"] == 3.5  # the oracle looks at the metric that is shown
    assert log_prob["random"] == pytest.approx(METRIC.mean())
    assert log_prob["empty"] == -5.0
    assert log_prob["APE"] == -9.0


def test_gains_with_demonstrations_are_of_the_same_choices_and_examples(picks):
    one = labelled(METRIC[:1] + 1)
    gains = comparison.shot_gains([labelled()], [one], [picks], "log_prob").set_index(["shots", "method"])["gain"]
    assert gains["zero-shot", "ranker"] == gains["few-shot", "ranker"] == 2.0  # example 1 only: -1 against -3
    assert gains["zero-shot", "oracle"] >= gains["zero-shot", "random"] >= gains["zero-shot", "worst"]


def test_choices_say_who_wrote_them_and_what_they_gain(picks):
    chosen = comparison.choices([labelled()], [picks], "log_prob").set_index("input")
    assert chosen["origin"].to_dict() == {"2 + 2": "model", "3 + 9": "model"}
    assert chosen["gain"].to_dict() == {"2 + 2": 2.0, "3 + 9": 1.0}


def test_a_zero_shot_pool_holds_no_demonstration_and_no_answer():
    task = Task("sums", "Add.", (Demonstration("1 + 1", "2"),), (), TASK.examples)
    made = [("Add.", "human"), ("Add up.", "one-sentence"), ("As 1 + 1 is 2.", "step-by-step")]
    made += [("Explained.", "use-example"), ("Such as to 12.", "one-paragraph"), ("Say 4, 12 or 2.", "worked-tasks-1")]
    written = CandidateSet(tuple(Candidate(t, "human" if s == "human" else "model", s) for t, s in made), {"empty": 1})
    pool = comparison.zero_shot_pool(task, written)
    assert [c.style for c in pool] == ["human", "one-sentence", "worked-tasks-1"]  # all answers named: none given away
    assert pool.refused == {"empty": 1, "shows a demonstration": 2, "gives an answer away": 1}
