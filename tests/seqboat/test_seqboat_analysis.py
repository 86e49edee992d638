"""What the notebook reads off its models and tasks, on tables small enough to check by hand."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from lib.seqboat import SeqBoatConfig, SeqBoatForCausalLM, SeqBoatForSequenceClassification
from lib.seqboat.study import analysis, suite
from lib.seqboat.study.corpus import Examples, padded

LOSSES = {"seqboat": [0.5, 1.0, 1.5, 2.0], "mega": [2.0, 2.0, 2.0, 2.0]}


def folders_of(tmp_path, seeds=(0, 1)):
    """Folders of two kinds of model on two tasks; a later seed has higher losses, and activates more."""
    found = {}
    for task in ("recall", "language"):
        for kind, losses in LOSSES.items():
            for seed in seeds:
                folder = found[task, kind, seed] = tmp_path / f"{task}-{kind}-{seed}"
                folder.mkdir()
                scores = {"row": range(4), "loss": np.add(losses, seed), "right": [1.0, 0.0, 0.0, seed / 2]}
                pd.DataFrame(scores).to_csv(folder / "scores.csv", index=False)
                rates = [(step, layer, 0.5 + 0.1 * seed - 0.04 * step * layer) for step in (0, 10) for layer in (0, 1)]
                pd.DataFrame(rates, columns=["step", "layer", "rate"]).to_csv(folder / "rates.csv", index=False)
    return found


def test_held_out_rows_are_right_answers_or_bits(tmp_path):
    held_out = analysis.HeldOut(folders_of(tmp_path, seeds=(0, 1, 2)))
    assert held_out.by_seed("recall", "mega").tolist() == [[1, 0, 0, 0], [1, 0, 0, 0.5], [1, 0, 0, 1]]
    bits = held_out.by_seed("language", "seqboat")
    np.testing.assert_allclose(bits[1], np.array([1.5, 2.0, 2.5, 3.0]) / np.log(2))
    assert held_out.estimate("recall", "mega").n == "3 x 4 seeds x rows"
    assert held_out.estimate("recall", "mega").value == pytest.approx(4.5 / 12)


def test_one_seed_has_an_interval_over_rows(tmp_path):
    folders = folders_of(tmp_path, seeds=(1,))
    assert analysis.HeldOut(folders).estimate("recall", "seqboat").n == "4 rows"
    np.testing.assert_allclose(analysis.bits(folders["language", "mega", 1]), np.full(4, 3 / np.log(2)))


def test_answers_by_length(tmp_path):
    found = analysis.HeldOut(folders_of(tmp_path)).by_length("recall", np.array([12, 24, 12, 24]))
    assert list(found.columns) == ["kind", "length", "seed", "right"]
    of_mega = found[found["kind"] == "mega"]
    assert of_mega[["length", "seed"]].to_numpy().tolist() == [[12, 0], [12, 1], [24, 0], [24, 1]]
    assert of_mega["right"].tolist() == [0.5, 0.5, 0.0, 0.25]


def test_activation_is_seqboats_by_share_of_the_steps(tmp_path):
    folders = folders_of(tmp_path)
    found = analysis.activation(folders)
    assert len(found) == 2 * 2 * 4
    assert set(found["share"]) == {0.0, 1.0}
    ended = analysis.outcomes({key[1:]: folder for key, folder in folders.items()}, ("kind", "seed"))
    first = ended[(ended["kind"] == "seqboat") & (ended["seed"] == 1)].iloc[0]
    assert (first["rate"], first["accuracy"]) == (pytest.approx((0.6 + 0.2) / 2), pytest.approx(1.5 / 4))


def test_majority_counts_what_is_asked():
    labels = torch.tensor([[-100, 1, 2], [-100, 1, -100]])
    assert analysis.majority(Examples.of_one_length(torch.ones(2, 3, dtype=torch.long), labels)) == pytest.approx(2 / 3)


def test_activation_gap_is_what_tasks_differ_beyond_seeds():
    one, other = np.array([[0.2], [0.4]]), np.array([[0.7], [0.9]])
    assert analysis.activation_gap(one, other) == pytest.approx(0.5 - 0.2)
    assert analysis.activation_gap(one, one.copy()) == pytest.approx(0.1 - 0.2)


def test_spans_of_a_unit_that_is_always_active():
    torch.manual_seed(0)
    config = SeqBoatConfig(
        vocab_size=11, hidden_size=8, value_size=8, key_size=4, num_hidden_layers=2, window=3, is_decoder=True,
        norm="layer", prenorm=True, positions="rotary", always_active=True, attention_function="softmax",
    )  # fmt: skip
    model = SeqBoatForCausalLM(config).eval()
    table, reach = analysis.spans(model, torch.randint(1, 11, (4, 20)))
    assert table["layer"].tolist() == ["layer 1"] * 2 + ["layer 2"] * 2
    ends = table[table["of"] == "reach"]
    assert (ends[["low", "median", "high"]] == 3).all(axis=None)
    assert (table[table["of"] == "distance"]["high"] <= 3).all()
    assert reach.tolist() == [1.0] * 4
    short, none = analysis.spans(model, torch.randint(1, 11, (4, 3)))
    assert len(short) == len(none) == 0


def test_rows_do_not_depend_on_their_batch():
    torch.manual_seed(0)
    config = SeqBoatConfig(vocab_size=11, hidden_size=8, value_size=8, key_size=4, num_hidden_layers=1, window=3)
    examples = padded([[1, 2, 3], [4, 5, 6, 7, 8, 9], [10]], [0, 1, 0])
    model = SeqBoatForSequenceClassification(config).eval()
    assert analysis.batch_dependence(model, examples) < 1e-5
    assert analysis.batch_dependence(BatchSum(), examples) == sum(range(11)) - 6


class BatchSum(torch.nn.Linear):
    """Says of every row the sum over its whole batch."""

    def __init__(self):
        super().__init__(1, 1)

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(logits=input_ids.sum().expand(len(input_ids), 1))


def test_what_the_unit_is_worth():
    rows = [
        ("recall", seed, unit, 1.0 + (unit == "off") * (1 + seed), 0.5) for seed in (0, 1) for unit in ("on", "off")
    ]
    table, saved = analysis.with_and_without(pd.DataFrame(rows, columns=["task", "seed", "unit", "bits", "right"]))
    assert table.loc["recall", "bits, unit off"] == 2.5
    assert table.loc["recall", "accuracy, unit on"] == 0.5
    assert saved["recall"] == 1.5


def timed(pairs):
    """Steps of two kinds and two lengths; the first pair warms up, and the time grows with the square of the length."""
    return pd.DataFrame(
        {
            "pair": pair, "kind": kind, "layer": kind, "window": 4, "tokens": tokens, "mebibytes": tokens,
            "seconds": 9.0 if pair == 0 else slow * tokens**2,
        }
        for pair in range(pairs + 1) for kind, slow in (("seqboat", 1.0), ("mega", 2.0)) for tokens in (8, 16)
    )  # fmt: skip


def test_times_leave_the_warm_up_out():
    steps = timed(3)
    of_ours = steps[steps["kind"] == "seqboat"]
    assert analysis.exponent(of_ours, 8, 16)["estimate"] == pytest.approx(2)
    short = steps[steps["tokens"] == 8]
    ratio = analysis.ratio_of_kinds(short, "seqboat", "mega", 4)
    assert (ratio.value, ratio.n) == (pytest.approx(0.5), "3 pairs")
    assert analysis.median_step(of_ours)["seconds"].tolist() == [64, 256]
    assert len(analysis.after_warm_up(timed(0))) == len(timed(0))


def test_trade_off_of_time_and_bits(tmp_path):
    folders = {(kind, 4): folder for (task, kind, _), folder in folders_of(tmp_path, seeds=(0,)).items()}
    short = timed(2)[timed(2)["tokens"] == 8]
    found = analysis.trade_off(short, folders).set_index("kind")
    assert found.loc["mega", "ms"] == 2 * 64e3
    assert found.loc["mega", "bits"] == pytest.approx(2 / np.log(2))


def test_suite_refuses_what_cannot_be_compared():
    suite.check(["recall", "digits", "language"], task_seeds=[1, 1, 1])
    with pytest.raises(ValueError, match="begin with recall"):
        suite.check(["digits", "recall", "language"])
    with pytest.raises(ValueError, match="one more between"):
        suite.check(["recall", "language"])
    with pytest.raises(ValueError, match=r"task_steps = \[1\] must hold a number for each of 3"):
        suite.check(["recall", "digits", "language"], task_steps=[1])
    with pytest.raises(ValueError, match="no task is named 'songs'"):
        suite.train_and_test("songs")


def test_suite_draws_train_and_test_rows_apart():
    options = {"rows": [12, 6], "lengths": [12, 16], "short": 3, "pairs": 2, "values": 3, "noise_asked": 0.5}
    train, test = suite.train_and_test("recall", seed=1, **options)
    assert (train.real.sum(1) == 12).sum() == 9  # three of four rows are of the shortest length
    assert len(test) == 6
    assert not torch.equal(train.inputs[0, :12], test.inputs[0, :12])
    assert ((test.labels >= 0).sum(1) == 2).all()
    trees, others = suite.train_and_test("listops", seed=1, rows=[5, 4], length=(5, 30))
    assert (len(trees), len(others)) == (5, 4)
    kept, last = suite.held_back(trees, one_of=5)
    assert torch.equal(torch.cat([kept.inputs, last.inputs]), trees.inputs)
    assert len(last) == 1
