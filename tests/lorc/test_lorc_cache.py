"""The cache: bytes by formula and by torch, generation of every kind, rows and tokens taken back, wrong owners."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from lib.lorc import LowRankCache, Plan, compress, decompose_model, replace_weights

Maker = Callable[..., nn.Module]
RANKS = ((16, 10, 4), (12, 6, 2))


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few tokens fill several pages."""
    monkeypatch.setattr("lib.lorc.cache.PAGE_TOKENS", 6)


def token_ids(batch: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 61, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def filled(model: Any, tokens: torch.Tensor) -> LowRankCache:
    cache = LowRankCache(model.config)
    with torch.no_grad():
        model(input_ids=tokens, cache=cache)
    return cache


def float32_bytes(batch: int, tokens: int, sinks: int = 0) -> int:
    ranks, full = sum(RANKS[0]) + sum(RANKS[1]), 2 * 3 * 16
    return 4 * batch * (tokens * ranks + sinks * (full - ranks))


@pytest.mark.parametrize("tokens", [1, 5, 6, 7, 23])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_the_formula_and_what_torch_holds(
    make_model: Maker, tokens: int, batch: int, dtype: torch.dtype
) -> None:
    model = compress(make_model().to(dtype), ranks=RANKS)
    cache = filled(model, token_ids(batch, tokens))
    expected = batch * tokens * (sum(RANKS[0]) + sum(RANKS[1])) * dtype.itemsize
    assert cache.held_bytes() == expected
    with torch.no_grad():
        for step in range(1, 9):
            model(input_ids=token_ids(batch, 1), cache=cache)
            expected = batch * (tokens + step) * (sum(RANKS[0]) + sum(RANKS[1])) * dtype.itemsize
            assert cache.held_bytes() == expected


def test_bytes_against_the_full_cache(make_model: Maker) -> None:
    original, tokens = make_model(), token_ids(2, 19)
    model = compress(copy.deepcopy(original), ranks=RANKS)
    full = DynamicCache(config=original.config)
    original(input_ids=tokens, cache=full)
    full_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in full.layers)
    plan = Plan(*RANKS, width=16)
    assert filled(model, tokens).held_bytes() / full_bytes == pytest.approx(plan.kept)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("sinks", [0, 2])
def test_bytes_with_few_bits_and_sinks(make_model: Maker, sinks: int, bits: int) -> None:
    ranks = ((16, 9, 4), (12, 6, 3))
    cache = filled(compress(make_model(), ranks=ranks, bits=bits, sink_tokens=sinks), token_ids(2, 13))
    each, width = (*ranks[0], *ranks[1]), 2 * 3 * 16
    codes = sum(each) if bits == 8 else sum((rank + 1) // 2 for rank in each)  # two codes of 4 bits in a byte
    scales = 2 * 3 * 4  # one float32 a matrix and layer
    assert cache.held_bytes() == 2 * (13 * (codes + scales) + sinks * (width - sum(each)) * 4)


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
@pytest.mark.parametrize("steps", [1, 4])
def test_nothing_outside_a_window_is_kept(make_model: Maker, family: str, steps: int) -> None:
    original, tokens = make_model(family, sliding_window=6), token_ids(2, 17)
    small, full = compress(copy.deepcopy(original), 0.6, budget="uniform"), DynamicCache(config=original.config)
    cache = LowRankCache(small.config)
    windows = [layer.window for layer in cache.layers]
    assert windows == [getattr(layer, "sliding_window", None) for layer in full.layers]
    for start in range(0, 17, steps):
        with torch.no_grad():
            for model, held in ((small, cache), (original, full)):
                model(input_ids=tokens[:, start : start + steps], cache=held)
        for mine, theirs in zip(cache.layers, full.layers, strict=True):
            assert len(mine.v) == theirs.keys.shape[2]
            assert mine.held_bytes() <= theirs.keys.nbytes + theirs.values.nbytes
    assert cache.get_seq_length() == 17
    with pytest.raises(ValueError, match="left the window cannot come back"):
        cache.crop(-1)


def test_assisted_generation_with_a_window(make_model: Maker) -> None:
    target, assistant = make_model("mistral", sliding_window=6), make_model("mistral", layers=1, seed=3)
    small, prompt = compress(target, ranks=RANKS), token_ids(1, 9)
    greedy = generated(small, prompt, do_sample=False)
    assert torch.equal(generated(small, prompt, do_sample=False, assistant_model=assistant), greedy)


def generated(model: Any, prompt: torch.Tensor, **options: Any) -> torch.Tensor:
    torch.manual_seed(0)
    return model.generate(prompt, max_new_tokens=12, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 0.8, "top_k": 20},
        {"do_sample": True, "num_return_sequences": 3},
        {"num_beams": 3, "do_sample": False},
        {"num_beams": 4, "do_sample": True, "num_return_sequences": 2},
        {"do_sample": False, "prefill_chunk_size": 4},
        {"do_sample": False, "use_cache": False},
    ],
    ids=["greedy", "sampling", "many", "beams", "beam-sampling", "chunks", "no-cache"],
)
@pytest.mark.parametrize("padded", [False, True])
def test_generate_equals_the_fake_compressed_model(make_model: Maker, options: dict[str, Any], padded: bool) -> None:
    model = make_model()
    fake = replace_weights(copy.deepcopy(model), Plan(*RANKS, width=16), decomposition=decompose_model(model))
    small, prompt = compress(model, ranks=RANKS), token_ids(2, 9)
    if padded:
        prompt[1, :4] = 0
        options = options | {"attention_mask": (prompt > 0).long()}
    assert torch.equal(generated(small, prompt, **options), generated(fake, prompt, **options))


@pytest.mark.parametrize("sinks", [0, 2])
def test_assisted_generation_takes_back_rejected_tokens(make_model: Maker, sinks: int) -> None:
    target, assistant = make_model(), make_model(layers=1, seed=3)
    prompt = token_ids(1, 9)
    small = compress(copy.deepcopy(target), ranks=RANKS, sink_tokens=sinks)
    greedy = generated(small, prompt, do_sample=False)
    assert torch.equal(generated(small, prompt, do_sample=False, assistant_model=assistant), greedy)
    # A compressed model drafts for its original, too.
    assert torch.equal(
        generated(target, prompt, do_sample=False, assistant_model=small), generated(target, prompt, do_sample=False)
    )


def test_generate_returns_the_cache_it_filled(make_model: Maker) -> None:
    model, prompt = compress(make_model(), ranks=RANKS), token_ids(1, 7)
    output = model.generate(prompt, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    assert isinstance(output.cache, LowRankCache)
    assert output.cache.get_seq_length() == 11  # the last token was not fed back
    # The mask is given because this model may well generate its padding token.
    everything = {"attention_mask": torch.ones(1, 12, dtype=torch.long), "cache": output.cache}
    more = model.generate(output.sequences, max_new_tokens=4, do_sample=False, **everything)
    assert torch.equal(more, model.generate(prompt, max_new_tokens=9, do_sample=False))


@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize("length", [0, 1, 5, 6, 12, 13])
def test_crop_is_as_if_the_tokens_had_never_come(make_model: Maker, length: int, sinks: int) -> None:
    model, tokens = compress(make_model(), ranks=RANKS, sink_tokens=sinks), token_ids(2, 14)
    cache = filled(model, tokens)
    cache.crop(length - 14)
    assert cache.get_seq_length() == length
    assert cache.held_bytes() == (float32_bytes(2, length, sinks) if length else 0)
    other = token_ids(2, 6, seed=5)
    with torch.no_grad():
        after = model(input_ids=other, cache=cache).logits
        whole = model(input_ids=torch.cat((tokens[:, :length], other), dim=1)).logits[:, length:]
    torch.testing.assert_close(after, whole, atol=1e-4, rtol=0)


def test_rows_are_reordered_selected_and_repeated(make_model: Maker) -> None:
    model, tokens = compress(make_model(), ranks=RANKS, sink_tokens=2), token_ids(3, 10)
    tokens[1, :4] = 0
    mask, step = (tokens > 0).long(), token_ids(4, 1, seed=2)
    cache = LowRankCache(model.config)
    with torch.no_grad():
        model(input_ids=tokens, attention_mask=mask, cache=cache)
        cache.reorder_cache(torch.tensor([2, 1, 1]))
        cache.batch_select_indices(torch.tensor([0, 2]))
        cache.batch_repeat_interleave(2)
        rows = torch.tensor([2, 2, 1, 1])
        whole, wide = torch.cat((tokens[rows], step), 1), torch.cat((mask[rows], torch.ones(4, 1, dtype=torch.long)), 1)
        after = model(input_ids=step, attention_mask=wide, cache=cache).logits
        expected = model(input_ids=whole, attention_mask=wide).logits[:, -1:]
    torch.testing.assert_close(after, expected, atol=1e-4, rtol=0)
    assert cache.held_bytes() == float32_bytes(4, 11, sinks=2)
    cache.reset()
    assert cache.get_seq_length() == cache.held_bytes() == 0


def test_a_cache_of_another_model_is_refused(make_model: Maker) -> None:
    original, tokens = make_model(), token_ids(1, 4)
    model = compress(copy.deepcopy(original), ranks=RANKS)
    other = compress(copy.deepcopy(original), 0.25)
    with pytest.raises(ValueError, match="needs a LowRankCache of its own config, not a DynamicCache"):
        model(input_ids=tokens, cache=DynamicCache(config=original.config))
    with pytest.raises(ValueError, match="made for a model with other ranks"):
        model(input_ids=tokens, cache=LowRankCache(other.config))
    with pytest.raises(ValueError, match="give this model a DynamicCache instead"):
        original(input_ids=tokens, cache=LowRankCache(model.config))
    with pytest.raises(ValueError, match="belongs to no compressed model"):
        LowRankCache(original.config)
    with pytest.raises(ValueError, match="leave cache_implementation unset, not 'static'"):
        model.generate(tokens, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match="attends with sdpa or eager, not 'paged|sdpa'"):  # continuous batching
        model.generate_batch([tokens[0].tolist()], max_new_tokens=2)


@pytest.mark.parametrize("positions", [[0, 1, 2, 0, 1, 2, 3, 4], [3, 4, 9, 10, 11, 20, 21, 22]])
def test_positions_with_gaps_and_restarts_are_followed(make_model: Maker, positions: list[int]) -> None:
    model, tokens, given = make_model(), token_ids(2, 8), torch.tensor([positions] * 2)
    given[1] += 5
    fake = replace_weights(copy.deepcopy(model), Plan(*RANKS, width=16))
    mask = torch.ones(2, 8, dtype=torch.long)  # given, so that restarts are not read as packed texts
    with torch.no_grad():
        expected = fake(input_ids=tokens, position_ids=given, attention_mask=mask).logits
        small = compress(model, ranks=RANKS)
        cache, parts = LowRankCache(small.config), []
        for start, stop in ((0, 3), (3, 7), (7, 8)):
            here = {"position_ids": given[:, start:stop], "attention_mask": mask[:, :stop]}
            parts.append(small(input_ids=tokens[:, start:stop], cache=cache, **here).logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-4, rtol=0)


def test_crop_takes_a_negative_number(make_model: Maker) -> None:
    model = compress(make_model(), ranks=RANKS)
    with pytest.raises(ValueError, match="as a negative number, got 2"):
        filled(model, token_ids(1, 6)).crop(2)
