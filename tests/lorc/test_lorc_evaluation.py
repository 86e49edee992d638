"""What the notebook measures, on tiny models and by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lib.lorc import compress
from lib.lorc.study import choices, evaluation
from lib.zoo import load_dataset, load_lm

Maker = Callable[..., nn.Module]


def item(prompt: tuple[int, ...], options: tuple[int, ...], right: int = 0) -> choices.ChoiceItem:
    return choices.ChoiceItem("t", prompt, options, right)


def test_the_likeliest_first_token_is_chosen_whatever_the_batch(make_model: Maker) -> None:
    model: Any = make_model()
    generator, items = torch.Generator().manual_seed(0), []
    for length in (3, 9, 5, 12):
        prompt = torch.randint(1, 61, (length,), generator=generator)
        with torch.no_grad():
            logits = model(input_ids=prompt[None]).logits[0, -1]
        best = int(logits[10:14].argmax())
        items += [item(tuple(prompt.tolist()), (10, 11, 12, 13), best), item(tuple(prompt.tolist()), (10, 11, 12, 13))]
    hits = choices.choice_hits(model, items, batch_size=3)
    assert hits[::2].all()
    assert hits[1::2].tolist() == [each.right == 0 for each in items[::2]]
    assert torch.equal(hits, choices.choice_hits(model, items, batch_size=1))
    with pytest.raises(ValueError, match="no item to choose in"):
        choices.choice_hits(model, [])


def test_items_are_spread_over_tasks_and_hold_one_right_answer() -> None:
    _, tokenizer = load_lm("smollm2-135m-instruct")
    items = choices.choice_items(load_dataset("evals", split="test"), tokenizer, limit=12)
    assert len({each.task for each in items}) == len(items) == 12
    assert len({each.right for each in items}) == 4
    assert all(len(set(each.options)) == 4 and len(each.prompt) <= 96 for each in items)
    row = {"task": "t", "instruction": "i", "input": "x", "ideals": ["a"]}
    with pytest.raises(ValueError, match="no task has 4 short answers that begin differently"):
        choices.choice_items([row], tokenizer, limit=3)


def test_a_twin_shares_its_weights_and_compressing_it_leaves_the_original(make_model: Maker) -> None:
    model: Any = make_model()
    tokens = torch.arange(1, 10)[None]
    with torch.no_grad():
        before = model(input_ids=tokens).logits
        small = compress(evaluation.twin(model), 0.5)
        assert not torch.equal(small(input_ids=tokens).logits, before)
        assert torch.equal(model(input_ids=tokens).logits, before)
    assert small.get_input_embeddings().weight is model.get_input_embeddings().weight
