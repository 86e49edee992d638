"""Speculative decoding: the law of what comes out, rollback, padding, ends, and statistics that add up."""

import copy
import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from tokenizers import Tokenizer, decoders, models
from transformers import (
    LlamaForCausalLM,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from lib.tempspec import AutoTree, DynamicTree, ModelDrafter, SpeculativeDecoder, StaticTree, UniversalDrafter, Warping
from tests.tempspec.conftest import VOCAB, llama

PROMPT = torch.tensor([[1, 4, 2, 1, 4]])
ROWS, NEW = 3_000, 3
KINDS = ("model", "truncated", "lookup", "feature", "lookup then model")


@torch.inference_mode()
def exact_law(target, warping: Warping, prompt: torch.Tensor = PROMPT) -> np.ndarray:
    """Probability of every continuation of NEW tokens, by running the target over all of them."""
    continuations = torch.tensor(list(itertools.product(range(VOCAB), repeat=NEW)))
    rows = torch.cat([prompt.expand(len(continuations), -1), continuations], dim=1)
    probs = warping.probs(target(rows).logits[:, prompt.shape[1] - 1 : -1])
    return probs.gather(-1, continuations[..., None]).squeeze(-1).prod(dim=1).double().numpy()


def p_value(sequences: torch.Tensor, law: np.ndarray) -> float:
    weights = VOCAB ** torch.arange(NEW - 1, -1, -1)
    counts = np.bincount((sequences[:, -NEW:] * weights).sum(1), minlength=VOCAB**NEW)
    assert counts[law < 1e-12].sum() == 0
    expected = law / law.sum() * counts.sum()
    rare = expected < 5  # joined into one cell, as the chi-square test needs
    joined = [np.append(x[~rare], x[rare].sum()) for x in (counts, expected)]
    keep = joined[1] > 0
    return stats.chisquare(joined[0][keep], joined[1][keep]).pvalue


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "warping",
    [Warping(0.5), Warping(1.0), Warping(1.5), Warping(1.2, top_k=3), Warping(1.0, top_p=0.7)],
    ids=lambda w: f"T={w.temperature:g} k={w.top_k} p={w.top_p:g}",
)
def test_output_law_is_the_targets(kind, warping, target, drafters):
    decoder = SpeculativeDecoder(target, drafters[kind], gamma=2, **vars(warping))
    generator = torch.Generator().manual_seed(7)
    output = decoder.generate(PROMPT.expand(ROWS, -1), max_new_tokens=NEW, generator=generator)
    assert p_value(output.sequences, exact_law(target, warping)) > 1e-3
    assert output.stats.tokens == ROWS * NEW


@pytest.mark.parametrize("gamma", [1, 3, "auto"])
def test_output_law_holds_at_any_block_length_and_with_padding(gamma, target, drafters):
    short = PROMPT[:, 2:]
    rows = torch.cat([torch.cat([torch.zeros_like(PROMPT[:, :2]), short], 1), PROMPT]).repeat(ROWS, 1)
    mask = torch.ones_like(rows)
    mask[::2, :2] = 0
    decoder = SpeculativeDecoder(target, drafters["model"], gamma=gamma, temperature=1.0)
    output = decoder.generate(rows, mask, max_new_tokens=NEW, generator=torch.Generator().manual_seed(8))
    assert p_value(output.sequences[::2], exact_law(target, Warping(1.0), short)) > 1e-3
    assert p_value(output.sequences[1::2], exact_law(target, Warping(1.0))) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [0, 1, 4, "auto"])
def test_greedy_output_is_generates(kind, gamma, target, drafters):
    prompts = torch.randint(1, VOCAB, (5, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(prompts)
    mask[0, :3] = mask[3, :5] = 0
    wanted = target.generate(prompts, attention_mask=mask, do_sample=False, max_new_tokens=24)
    output = SpeculativeDecoder(target, drafters[kind], gamma=gamma, temperature=0).generate(prompts, mask, 24)
    assert torch.equal(output.sequences, wanted)


def test_ends_as_generate_does(target, drafters):
    prompts = torch.randint(1, VOCAB, (6, 4), generator=torch.Generator().manual_seed(1))
    for eos in range(VOCAB):
        wanted = target.generate(prompts, do_sample=False, max_new_tokens=12, eos_token_id=eos, pad_token_id=0)
        decoder = SpeculativeDecoder(target, drafters["model"], gamma=3, temperature=0)
        output = decoder.generate(prompts, max_new_tokens=12, eos_token_id=eos)
        assert torch.equal(output.sequences, wanted)


def test_a_drafter_equal_to_the_target_is_always_accepted(target):
    decoder = SpeculativeDecoder(target, ModelDrafter(target), gamma=3, temperature=1.0)
    output = decoder.generate(PROMPT, max_new_tokens=21, generator=torch.Generator().manual_seed(0))
    assert output.stats.acceptance == 1.0
    assert output.stats.blocks == 5  # one token from the prompt, then blocks of four


def test_statistics_add_up(target, drafters):
    decoder = SpeculativeDecoder(target, drafters["model"], gamma=3, temperature=1.0)
    stats_ = decoder.generate(PROMPT.expand(8, -1), max_new_tokens=30).stats
    assert stats_.drafted[0] == stats_.tested[0] <= stats_.blocks  # the last block may have no room to draft
    assert all(seen <= hits for seen, hits in zip(stats_.tested[1:], stats_.accepted[:-1], strict=True))
    assert sum(count * drafted for drafted, count in stats_.lengths.items()) * 8 >= sum(stats_.drafted)
    assert stats_.acceptance <= stats_.conditional_acceptance <= 1
    assert stats_.tokens == 8 + stats_.gained
    assert stats_.seconds >= stats_.draft_seconds + stats_.target_seconds


@pytest.mark.parametrize("gamma", [8, StaticTree([(0,), (0, 0), (0, 0, 0), (1,), (0, 1)])], ids=["chain", "tree"])
def test_what_is_drafted_past_an_end_counts_for_nothing(target, gamma):
    decoder = SpeculativeDecoder(target, ModelDrafter(target), gamma=gamma)
    noise = torch.Generator().manual_seed(1)
    output = decoder.generate(PROMPT.expand(20, -1), None, 50, noise, eos_token_id=[1, 2])
    stats_ = output.stats
    assert stats_.block_efficiency == (int(output.new_tokens.sum()) - 20) / stats_.blocks
    assert sum(stats_.accepted) <= stats_.gained <= sum(stats_.accepted) + stats_.blocks
    if gamma == 8:
        assert stats_.by_position[0] == 1.0, "the drafter is the target"


def test_a_seed_gives_the_same_tokens_whatever_was_decoded_before(target, drafters):
    decoder = SpeculativeDecoder(target, drafters["model"])
    drawn = []
    for _ in range(2):
        drawn.append(decoder.generate(PROMPT, None, 50, torch.Generator().manual_seed(5)).sequences)
        decoder.generate(PROMPT.expand(8, -1), None, 50)  # without a generator it learns
    assert torch.equal(*drawn)


def test_modelled_seconds_are_those_of_the_rounds(target):
    decoder = SpeculativeDecoder(target, ModelDrafter(target), gamma=1, temperature=0)
    stats_ = decoder.generate(PROMPT, max_new_tokens=9).stats  # one token, then four blocks of two
    assert stats_.lengths == {1: 4}
    assert stats_.modelled_seconds(0.25, {1: 1.0, 2: 1.5}) == pytest.approx(4 * 1.75)


def test_streams_the_tokens_it_returns(target, drafters):
    class Streamer:
        def __init__(self):
            self.pieces, self.ended = [], False

        def put(self, tokens):
            self.pieces.append(tokens.flatten())

        def end(self):
            self.ended = True

    streamer = Streamer()
    decoder = SpeculativeDecoder(target, drafters["model"], gamma=3, temperature=0)
    output = decoder.generate(PROMPT, max_new_tokens=10, streamer=streamer)
    assert torch.equal(torch.cat(streamer.pieces), output.sequences[0])
    assert streamer.ended
    assert len(streamer.pieces) > 2


SHAPES = [3, "auto", DynamicTree(width=3, depth=3, floor=0.0), AutoTree(draft_cost=0.0, token_cost=0.0, most=4)]


@pytest.mark.parametrize("shape", SHAPES, ids=["chain", "auto", "tree", "auto tree"])
@pytest.mark.parametrize(
    "penalties",
    [
        {"repetition_penalty": 9.0},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 9, "eos_token_id": [0, 3]},
        {"suppress_tokens": [4], "begin_suppress_tokens": [1, 2], "forced_eos_token_id": 5, "bad_words_ids": [[2, 3]]},
    ],
    ids=str,
)
def test_penalties_of_the_generation_config_are_generates(shape, penalties, drafters, monkeypatch):
    target = llama(0)
    target.generation_config.update(**penalties)
    given = LogitsProcessorList([SequenceBiasLogitsProcessor([[[1, 4], 0.9]])])
    for prompt in (PROMPT, PROMPT[:, 3:]):
        wanted = target.generate(prompt, do_sample=False, max_new_tokens=14, logits_processor=given)
        for kind in ("model", "lookup"):
            decoder = SpeculativeDecoder(target, drafters[kind], gamma=shape, temperature=0, logits_processor=given)
            assert decoder.generate(prompt, max_new_tokens=14).sequences.tolist() == wanted.tolist()
    plain = llama(0).generate(PROMPT, do_sample=False, max_new_tokens=14)
    held = target.generate(PROMPT, do_sample=False, max_new_tokens=14, logits_processor=given)
    assert plain.tolist() != held.tolist()


@pytest.mark.parametrize("shape", SHAPES, ids=["chain", "auto", "tree", "auto tree"])
def test_the_law_holds_under_a_penalty(shape, drafters):
    target = llama(0)
    target.generation_config.repetition_penalty = 1.7
    decoder = SpeculativeDecoder(target, drafters["model"], gamma=shape)
    output = decoder.generate(PROMPT.expand(500, -1), None, NEW, torch.Generator().manual_seed(3))
    continuations = torch.tensor(list(itertools.product(range(VOCAB), repeat=NEW)))
    law, penalty = torch.ones(len(continuations)), RepetitionPenaltyLogitsProcessor(1.7)
    with torch.inference_mode():
        for step in range(NEW):
            rows = torch.cat([PROMPT.expand(len(continuations), -1), continuations[:, :step]], dim=1)
            probs = penalty(rows, target(rows).logits[:, -1]).softmax(-1)
            law *= probs.gather(1, continuations[:, step, None])[:, 0]
    assert p_value(output.sequences, law.double().numpy()) > 1e-3


def test_what_cannot_be_applied_to_drafts_is_refused(drafters):
    target = llama(0)
    target.generation_config.guidance_scale = 1.5
    with pytest.raises(ValueError, match="guidance_scale cannot be applied"):
        SpeculativeDecoder(target, drafters["model"]).generate(PROMPT, max_new_tokens=2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_tokens_whatever_the_clock_says(kind, target, drafters, monkeypatch):
    decoder, made = SpeculativeDecoder(target, drafters[kind]), []
    for slow in (0.0, 1.0):
        ticks = itertools.count()
        monkeypatch.setattr("time.perf_counter", lambda ticks=ticks, slow=slow: slow * next(ticks) ** 2)
        made.append(decoder.generate(PROMPT.expand(3, -1), None, 40, torch.Generator().manual_seed(5)).sequences)
    assert made[0].equal(made[1])


def tokenizer(merges, letters="abc"):
    pieces = [*letters, *("".join(merge) for merge in merges)]
    made = Tokenizer(models.BPE({piece: place for place, piece in enumerate(pieces)}, merges))
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="a")


def test_a_drafter_with_another_tokenizer_keeps_the_law_and_the_greedy_tokens(target):
    ours, theirs = tokenizer([("a", "b"), ("b", "c"), ("ab", "bc")]), tokenizer([("c", "a")], "cba")
    assert len(ours) == VOCAB
    drafter = UniversalDrafter(llama(9, layers=1), theirs, ours)
    prompts = torch.cat([PROMPT, PROMPT.flip(1)])
    wanted = target.generate(prompts, do_sample=False, max_new_tokens=20)
    for shape in SHAPES:
        decoder = SpeculativeDecoder(target, drafter, gamma=shape, temperature=0)
        assert decoder.generate(prompts, max_new_tokens=20).sequences.equal(wanted)
    noise = torch.Generator().manual_seed(4)
    output = SpeculativeDecoder(target, drafter, gamma=2).generate(PROMPT.expand(800, -1), None, NEW, noise)
    assert p_value(output.sequences, exact_law(target, Warping(1.0))) > 1e-3
    assert sum(output.stats.accepted) > 100


def test_strings_are_continued_where_there_is_a_tokenizer(target, drafters):
    ours = tokenizer([("a", "b"), ("b", "c"), ("ab", "bc")])
    decoder = SpeculativeDecoder(target, drafters["model"], temperature=0, tokenizer=ours)
    together = decoder.generate(["abcab", "cc"], max_new_tokens=6)
    ids = ours("abcab", return_tensors="pt").input_ids
    alone = SpeculativeDecoder(target, None, temperature=0).generate(ids, max_new_tokens=6).sequences
    assert together.texts[0] == ours.decode(alone[0, ids.shape[1] :], skip_special_tokens=True)
    assert decoder.generate("abcab", max_new_tokens=6).texts == together.texts[:1]
    with pytest.raises(TypeError, match="was given a tokenizer"):
        SpeculativeDecoder(target, None).generate("abcab")


@pytest.mark.parametrize("difference", [-2, 3])
def test_a_vocabulary_of_other_padding_keeps_the_law(difference, target):
    torch.manual_seed(2)
    config = copy.deepcopy(llama(1, layers=1).config)
    config.vocab_size = VOCAB + difference
    drafter = ModelDrafter(LlamaForCausalLM(config))
    wanted = target.generate(PROMPT, do_sample=False, max_new_tokens=20)
    for shape in SHAPES:
        decoder = SpeculativeDecoder(target, drafter, gamma=shape, temperature=0)
        assert decoder.generate(PROMPT, max_new_tokens=20).sequences.equal(wanted)
    noise = torch.Generator().manual_seed(4)
    output = SpeculativeDecoder(target, drafter, gamma=2).generate(PROMPT.expand(1000, -1), None, NEW, noise)
    assert p_value(output.sequences, exact_law(target, Warping(1.0))) > 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d, t: d.generate(t, max_new_tokens=0), "at least 1"),
        (lambda d, t: d.generate(t, torch.tensor([[1, 1, 1, 1, 0]])), "pad on the left"),
        (lambda d, t: d.generate(t.expand(2, -1), streamer=object()), "one prompt"),
        (lambda d, t: d.generate(t, max_new_tokens=60), "the target knows 64"),
    ],
)
def test_bad_input_says_what_to_do(call, message, target, drafters):
    with pytest.raises(ValueError, match=message):
        call(SpeculativeDecoder(target, drafters["model"]), PROMPT)


def test_refuses_a_drafter_of_another_vocabulary_and_an_unknown_gamma(target):
    other = llama(3)
    other.config.vocab_size = VOCAB + 1024
    with pytest.raises(ValueError, match="tokenizer"):
        SpeculativeDecoder(target, ModelDrafter(other)).generate(PROMPT, max_new_tokens=4)
    with pytest.raises(ValueError, match="gamma"):
        SpeculativeDecoder(target, ModelDrafter(other), gamma="some")
    with pytest.raises(ValueError, match="gamma"):
        SpeculativeDecoder(target, ModelDrafter(other), gamma=-1)
