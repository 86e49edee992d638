"""Baselines: bounds by construction, the fixed style from training tasks only, and the model's own judgements."""

import numpy as np
import pytest

from lib.autoinstruct import Candidate
from lib.autoinstruct.labelling import Pair, label
from lib.autoinstruct.study import baselines
from lib.autoinstruct.tasks import Demonstration, Example, Task
from lib.autoinstruct.trainer import LabelTable

CANDIDATES = (
    Candidate("Add.", "human", "human"),
    Candidate("Add. Answer with a number only.", "rule", "format-line"),
    Candidate("Sum the numbers.", "model", "one-sentence"),
    Candidate("Add up what is given.", "model", "one-sentence"),
)
DEMOS = (Demonstration("2 + 2", "4"), Demonstration("3 + 9", "12"))


def table(metric):
    metric = np.asarray(metric, dtype=float)
    return LabelTable("t", tuple(f"x{i}" for i in range(len(metric))), CANDIDATES, metric)


def test_the_fixed_style_is_the_best_on_the_training_tasks():
    training = [table([[0, 1, 0.4, 0.6]]), table([[0.5, 0.9, 0.9, 0.2]])]
    assert baselines.best_style(training) == "format-line"
    gains = baselines.style_gains(training)
    assert gains["one-sentence"] == pytest.approx([0.0, 0.55 - 0.625])
    assert baselines.with_style(CANDIDATES, "format-line") == 1
    assert baselines.with_style(CANDIDATES, "none such") == 0
    assert baselines.style_wins(training, "format-line").tolist() == [1.0, 1.0]
    assert baselines.style_wins(training, "one-sentence").tolist() == [0.0, 0.0]
    tied, alike = table([[0.9, 0.9, 0.1, 0.2]]), table([[0.0, 0.0, 0.0, 0.0]])
    assert baselines.style_wins([tied, alike], "format-line").tolist() == [0.5]
    assert baselines.chance_to_win(training, "format-line") == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="at least one table"):
        baselines.best_style([])


def test_the_best_style_is_tried_on_the_other_half_of_the_examples():
    steady = table([[0, 1, 0.4, 0.6]] * 2)  # styles are worth 0, 1 and .5: the best is .5 above their mean
    assert baselines.best_style_transferred(steady) == pytest.approx(0.5)
    turning = table([[0, 1, 0.5, 0.5], [1, 0, 0.5, 0.5]])  # what leads on one half trails on the other
    assert baselines.best_style_transferred(turning) == pytest.approx(-0.5)
    assert baselines.best_style_transferred(table([[0.3] * 4] * 4)) == pytest.approx(0)


def test_the_models_own_judgements(lm):
    task = Task("sums", "Add.", DEMOS, (), (Example("1 + 1", ("2",)),))
    validated = baselines.cross_validate(*lm, task, CANDIDATES[:2], shown=2, max_new_tokens=4)
    pairs = [Pair(c.text, d.input, (d.output,), others=("2",)) for c in CANDIDATES[:2] for d in DEMOS[:2]]
    rouge = [one.rouge_l for one in label(*lm, pairs, max_new_tokens=4, progress=False)]
    assert validated == pytest.approx(np.reshape(rouge, (2, 2)).mean(1), abs=1e-6)
    assert (validated > np.reshape(rouge, (2, 2)).mean(1)).all()  # between equals the likelier gold replies decide
    asked = baselines.ask_the_model(*lm, CANDIDATES[:3], DEMOS)
    alone = baselines.ask_the_model(*lm, CANDIDATES[1:2], DEMOS)
    assert asked[1] == pytest.approx(alone[0], abs=2e-3)
