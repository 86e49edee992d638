import pytest
import torch

from lib.lorc.study import evaluation
from lib.zoo import load_dataset, load_lm


@pytest.fixture(scope="module")
def smollm():
    return load_lm("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def items(smollm):
    return evaluation.ranking_items(load_dataset("evals", split="test"), smollm[1], limit=12)


def test_items_are_spread_over_tasks_and_hold_one_right_answer(items, smollm):
    assert len({item.task for item in items}) == len(items) == 12
    positions = [item.right for item in items]
    assert len(set(positions)) == 4
    for item in items:
        texts = [smollm[1].decode(d.tokens[d.scored]) for d in item.candidates]
        assert len(set(texts)) == 4


def test_a_real_model_ranks_better_than_chance_and_batching_changes_nothing(items, smollm):
    hits = evaluation.ranking_hits(smollm[0], items, progress=False)
    assert hits.float().mean() > 0.25
    alone = evaluation.ranking_hits(smollm[0], items[:3], batch_items=1, progress=False)
    assert torch.equal(hits[:3], alone)


def test_bad_input_is_one_sentence(smollm):
    row = {"task": "t", "instruction": "i", "input": "x", "ideals": ["a"]}
    with pytest.raises(ValueError, match="no task has 4 different short answers"):
        evaluation.ranking_items([row], smollm[1], limit=3)
    with pytest.raises(ValueError, match="no item to rank"):
        evaluation.ranking_hits(smollm[0], [], progress=False)
