"""The tasks: their rules, their difficulty knobs, and that a model learns from them."""

import pytest
import torch

from lib.seqboat import SeqBoatConfig, SeqBoatForCausalLM, SeqBoatForSequenceClassification
from lib.seqboat.study.corpus import byte_windows, encode_bytes, sequential_digits
from lib.seqboat.study.generated import (
    NOISE,
    OPERATORS,
    TOKENS,
    generate_listops,
    generate_pathfinder,
    generate_recall,
)
from lib.seqboat.study.trainer import TrainingPlan, score, train

ANSWER = {"from": "gpt", "value": "Answer " * 9}
RECORDS = [{"conversations": [{"from": "human", "value": f"Question {i}, ünicode?"}, ANSWER]} for i in range(8)]


def evaluate(tokens):
    """The value of an expression given by token numbers, read with a stack."""
    stack = [[]]
    for token in (TOKENS[number] for number in tokens):
        if token in OPERATORS:
            stack.append([token])
        elif token == "]":
            operator, *values = stack.pop()
            stack[-1].append(OPERATORS[operator](values))
        elif token != "<pad>":
            stack[-1].append(int(token))
    return stack[0][0]


def test_listops_follow_the_rules():
    made = generate_listops(80, length=(20, 120), seed=3)
    lengths = made.real.sum(1)
    assert lengths.min() > 20
    assert lengths.max() < 120
    assert len({tuple(row.tolist()) for row in made.inputs}) == 80
    for row, label in zip(made.inputs.tolist(), made.labels.tolist(), strict=True):
        assert evaluate(row) == label
    assert set(made.labels.tolist()) == set(range(10))
    again = generate_listops(80, length=(20, 120), seed=3)
    assert torch.equal(made.inputs, again.inputs)


@pytest.mark.parametrize(
    ("text", "value"),
    [("[MAX 2 9 [MIN 4 7 ] 0 ]", 9), ("[MED 1 2 9 4 ]", 3), ("[MED 5 2 ]", 3), ("[SM 7 8 [SM 9 9 ] ]", 3)],
)
def test_listops_operators(text, value):
    assert evaluate([TOKENS.index(token) for token in text.split()]) == value


def test_listops_digit_share_at_the_root_free_depths():
    made = generate_listops(150, length=(5, 60), seed=0)
    digits = (made.inputs >= 1) & (made.inputs <= 10)
    operators = (made.inputs >= 11) & (made.inputs <= 14)
    assert 0.5 < digits.sum() / made.real.sum() < 0.9
    assert operators.sum() == (made.inputs == 15).sum()


def test_recall_asks_for_the_value_that_stood_before_the_key_and_never_shows_an_answer():
    made = generate_recall(60, lengths=(12, 30), pairs=3, values=8, seed=1)
    assert made.real.sum(1).tolist() == [12, 30] * 30
    for row, real, labels in zip(made.inputs, made.real, made.labels, strict=True):
        end = int(real.sum())
        asked = (labels != -100).nonzero().flatten()
        assert asked.tolist() == [end - 5, end - 3, end - 1]
        assert row[asked].min() >= 1
        assert row[asked].max() <= NOISE
        for place in asked.tolist():
            (first,) = (row[: end - 6] == row[place - 1]).nonzero().flatten().tolist()
            assert row[first - 1] == labels[place]
    several = generate_recall(8, lengths=(12, 12, 12, 30), pairs=3, values=8)
    assert several.real.sum(1).tolist() == [12, 12, 12, 30] * 2
    batch = made.batch([0, 2])
    assert batch["labels"].shape == batch["input_ids"].shape == (2, 12)
    with pytest.raises(ValueError, match="at least 12 tokens"):
        generate_recall(1, lengths=(11,), pairs=3, values=8)


def test_noise_is_told_only_after_noise():
    plain, made = (generate_recall(20, lengths=(40,), pairs=2, values=4, noise_asked=share) for share in (0.0, 1.0))
    assert (plain.labels != -100).sum() == 20 * 2
    for row, labels in zip(made.inputs, made.labels, strict=True):
        told = [place for place in range(1, 36) if labels[place] != -100]
        assert told == [place for place in range(1, 36) if max(row[place], row[place - 1]) <= NOISE]
        assert torch.equal(labels[told], row[told])


def test_rows_with_labelled_tokens_are_scored_on_those_alone():
    torch.manual_seed(0)
    made = generate_recall(6, lengths=(12, 20), pairs=2, values=4, seed=2)
    config = SeqBoatConfig(
        vocab_size=13, hidden_size=16, value_size=16, key_size=8, num_hidden_layers=1, window=8, is_decoder=True,
        norm="layer", prenorm=True,
    )  # fmt: skip
    model = SeqBoatForCausalLM(config)
    found = score(model, made, batch_size=2)
    whole = made.batch(torch.arange(6))
    assert found.losses.mean() == pytest.approx(float(model(**whole).loss), rel=1e-5)
    assert set(found.right.tolist()) <= {0.0, 0.5, 1.0}


def test_pathfinder_labels_are_balanced_and_images_differ():
    made = generate_pathfinder(20, side=24, seed=1)
    assert made.inputs.shape == (20, 576)
    assert made.labels.sum() == 10
    assert made.inputs.unique().tolist() == [-1.0, 1.0]
    assert len({tuple(row.tolist()) for row in made.inputs}) == 20


def test_pathfinder_reaches_sixteen_thousand_positions():
    assert generate_pathfinder(2, side=128, seed=0).inputs.shape == (2, 16_384)


def test_digits_split_is_disjoint_and_scales():
    train_part, test_part = sequential_digits()
    assert len(train_part) + len(test_part) == 1797
    larger, _ = sequential_digits(scale=2)
    image, blown = train_part.inputs[0].view(8, 8), larger.inputs[0].view(16, 16)
    torch.testing.assert_close(blown[::2, ::2], image)
    torch.testing.assert_close(blown[1::2, 1::2], image)


def test_bytes():
    assert encode_bytes("aü") == [98, 196, 189]
    windows = byte_windows(RECORDS, length=50, count=10)
    assert windows.inputs.shape == (10, 50)
    batch = windows.batch([0, 1])
    assert torch.equal(batch["labels"], batch["input_ids"])


def test_training_learns_and_measures():
    part, _ = sequential_digits()
    few = part.select(torch.arange(128))
    torch.manual_seed(0)
    config = SeqBoatConfig(
        inputs="values", hidden_size=16, value_size=16, key_size=8, num_hidden_layers=1, window=8, num_labels=10
    )
    model = SeqBoatForSequenceClassification(config)
    before = score(model, few)
    plan = TrainingPlan(steps=30, batch_size=32, learning_rate=0.01, warmup=3)
    found = train(model, few, plan, measure=lambda m: score(m, few).losses.mean(), measure_at=[10, 30], progress=False)
    after = score(model, few)
    assert sorted(found) == [10, 30]
    assert after.losses.mean() < before.losses.mean()
    assert after.rates.shape == (128, 1)
    assert found[30] == pytest.approx(after.losses.mean(), rel=1e-5)


def test_a_plan_for_two_devices_accumulates_on_one_what_the_other_would_have_had():
    few, trained = sequential_digits()[0].select(torch.arange(64)), []
    for batch, devices in ((8, 2), (16, 1)):
        torch.manual_seed(0)
        config = SeqBoatConfig(
            inputs="values", hidden_size=8, value_size=8, key_size=4, num_hidden_layers=1, window=8, num_labels=10
        )
        model = SeqBoatForSequenceClassification(config)
        plan = TrainingPlan(steps=4, batch_size=batch, learning_rate=0.01, devices=devices)
        train(model, few, plan, progress=False)
        trained.append(model.state_dict())
    for name, weight in trained[1].items():
        torch.testing.assert_close(trained[0][name], weight, atol=1e-5, rtol=1e-4)


def test_bad_arguments():
    with pytest.raises(ValueError, match="no tree has a length"):
        generate_listops(3, length=(10, 11))
    with pytest.raises(ValueError, match="at least 16 pixels"):
        generate_pathfinder(1, side=8)
    with pytest.raises(ValueError, match="find no room"):
        generate_pathfinder(1, side=16, dashes=30)
    with pytest.raises(ValueError, match="scale must be"):
        sequential_digits(scale=0)
    with pytest.raises(ValueError, match="read more records"):
        byte_windows(RECORDS, length=1000, count=10)
    with pytest.raises(ValueError, match="warm-up shorter"):
        TrainingPlan(steps=5, batch_size=1, learning_rate=0.1, warmup=5)
    with pytest.raises(ValueError, match="do not fill"):
        train(torch.nn.Linear(1, 1), sequential_digits()[0], TrainingPlan(1, 9999, 0.1))
