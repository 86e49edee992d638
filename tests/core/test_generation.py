"""Contexts read as a fresh pass does, whatever was taken back or shared; draws follow their law."""

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lib import TenfoldError, lorc
from lib.core import generation
from lib.core.generation import Context, Warping, common_length, decode, draw, draw_logits, read_groups
from lib.core.scoring import decoder_of, head_logits, padded
from tests.core.conftest import VOCAB

ROWS = 40_000
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@torch.inference_mode()
def alone(model, tokens):
    """Last hidden states of one row, by a plain pass without a cache."""
    return decoder_of(model)(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state[0]


@torch.inference_mode()
def plain_greedy(model, prompt, new, stops=()):
    """Greedy continuation by a whole pass a token, up to a stop token."""
    tokens = list(prompt)
    for _ in range(new):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] in stops:
            break
    return tokens[len(prompt) :]


@pytest.mark.parametrize(("waste", "side"), [(4, "left"), (4, "right"), (64, "right")])
def test_a_context_that_took_back_and_packed_reads_like_a_fresh_one(any_family, waste, side, monkeypatch):
    monkeypatch.setattr(generation, "WASTE", waste)
    generator = torch.Generator().manual_seed(2)
    context, rows = Context(any_family, 3), [[], [], []]
    with torch.inference_mode():
        for _ in range(8):
            tokens = torch.randint(0, VOCAB, (3, 4), generator=generator)
            count = torch.randint(1, 5, (3, 1), generator=generator)
            valid = torch.arange(4) < count if side == "right" else torch.arange(4) >= 4 - count
            hidden = context.read(tokens, valid).hidden
            for row, kept in enumerate(valid):
                rows[row] += tokens[row][kept].tolist()
                states = alone(any_family, rows[row])[-int(kept.sum()) :]
                torch.testing.assert_close(hidden[row][kept], states, **CLOSE)
            refused = torch.minimum(torch.randint(0, 4, (3,), generator=generator), valid.sum(1))
            context.rollback(refused)
            rows = [row[: len(row) - int(n)] for row, n in zip(rows, refused, strict=True)]
    assert context.lengths.tolist() == [len(row) for row in rows]
    assert context.mask.sum(1).tolist() == context.lengths.tolist()
    if waste == 4:
        assert context.mask.shape[1] <= int(context.lengths.max()) + 4 + 4


def test_samples_of_one_prompt_read_it_once(llama):
    prompt, read = torch.tensor([[1, 4, 2, 1, 4]]), []
    handle = llama.get_decoder().embed_tokens.register_forward_hook(lambda _, inputs, __: read.append(len(inputs[0])))
    with torch.inference_mode():
        together, apart = Context(llama, 4, layers=(1,)), Context(llama, 4, layers=(1,))
        one = together.read(prompt.expand(4, -1))
        each = apart.read(torch.cat([prompt.expand(3, -1), prompt.flip(1)]))
        after = torch.tensor([[1], [2], [3], [4]])
        steps = [context.read(after).hidden[:3] for context in (together, apart)]
    handle.remove()
    assert read == [1, 4, 4, 4]
    assert one.hidden.shape == each.hidden.shape
    torch.testing.assert_close(one.features[:3], each.features[:3], **CLOSE)
    torch.testing.assert_close(*steps, **CLOSE)
    assert together.lengths.tolist() == [6] * 4


def test_layers_are_the_models_hidden_states_and_embeddings_may_be_read(llama):
    tokens = torch.tensor([[1, 5, 2], [3, 3, 7]])
    with torch.inference_mode():
        wanted = llama(tokens, output_hidden_states=True).hidden_states
        step = Context(llama, 2, layers=(0, 1)).read(tokens)
        embedded = Context(llama, 2).read(tokens, embeddings=llama.get_input_embeddings()(tokens))
    torch.testing.assert_close(step.features, torch.cat(wanted[:2], dim=-1), **CLOSE)
    torch.testing.assert_close(embedded.hidden, step.hidden, **CLOSE)


def test_selected_rows_go_on_and_a_fork_leaves_its_context_alone(any_family):
    rows = [[1, 2, 3], [4, 5], [6]]
    with torch.inference_mode():
        context = Context(any_family, 3)
        context.read(*padded(rows, side="left"))
        fork = context.fork()
        fork.select(torch.tensor([2, 0, 0]))
        for branch, texts in ((fork, [rows[2], rows[0], rows[0]]), (context, rows), (fork, None)):
            if texts is None:
                texts = [[*rows[i], t] for i, t in zip((2, 0, 0), (1, 2, 3), strict=True)]
            hidden = branch.read(torch.tensor([[1], [2], [3]])).hidden[:, -1]
            for state, text, token in zip(hidden, texts, (1, 2, 3), strict=True):
                torch.testing.assert_close(state, alone(any_family, [*text, token])[-1], **CLOSE)


def test_groups_read_their_beginning_once_and_come_out_as_alone(any_family):
    groups = [[[1, 2, 3, 4], [1, 2, 3, 5, 6]], [[7, 1]], [[2, 2], [3, 1, 1], [4]], [[5, 5, 5], [5, 5, 5]]]
    with torch.inference_mode():
        context, hidden = read_groups(any_family, groups)
        prompts = [prompt for group in groups for prompt in group]
        assert context.lengths.tolist() == list(map(len, prompts))
        for state, prompt in zip(hidden, prompts, strict=True):
            torch.testing.assert_close(state, alone(any_family, prompt)[-1], **CLOSE)
        decoded = decode(context, hidden, max_new_tokens=5)
    assert decoded.tokens == [plain_greedy(any_family, prompt, 5) for prompt in prompts]


def test_what_is_shared_is_the_common_beginning_and_each_keeps_a_token():
    assert common_length([[1, 2, 3], [1, 2, 4, 5]]) == 2
    assert common_length([[1, 2], [1, 2]]) == 1
    assert common_length([[3], [4, 5]]) == 0
    for empty in ([], [[1], []]):
        with pytest.raises(ValueError, match="nothing to read"):
            common_length(empty)


def test_decoding_stops_and_drops_rows_as_each_does_alone(any_family):
    prompts, sizes = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10], [2], [3, 3]], []
    stops = [plain_greedy(any_family, prompts[0], 3)[-1], plain_greedy(any_family, prompts[1], 1)[-1]]
    with torch.inference_mode():
        context = Context(any_family, len(prompts))
        hidden = context.read(*padded(prompts, side="left")).hidden[:, -1]
        handle = any_family.get_input_embeddings().register_forward_hook(lambda _, ids, __: sizes.append(len(ids[0])))
        decoded = decode(context, hidden, stops=stops, max_new_tokens=12)
    handle.remove()
    wanted = [plain_greedy(any_family, prompt, 12, stops) for prompt in prompts]
    assert decoded.tokens == wanted
    assert decoded.ended == [tokens[-1] in stops for tokens in wanted]
    assert sizes == sorted(sizes, reverse=True)
    assert len({len(tokens) for tokens in wanted}) > 1


def test_a_chooser_sees_each_rows_own_law_and_number(llama):
    prompts, seen = [[1, 2], [3], [4, 4, 4]], []

    def choose(logits, rows, step):
        seen.append((logits, rows.tolist(), step))
        return torch.tensor([9 if row == 1 else step + 1 for row in rows.tolist()])

    with torch.inference_mode():
        context = Context(llama, 3)
        hidden = context.read(*padded(prompts, side="left")).hidden[:, -1]
        decoded = decode(context, hidden, stops=[9], max_new_tokens=3, choose=choose)
        last = llama(torch.tensor([[4, 4, 4, 1, 2]])).logits[0, -1]
    assert decoded.tokens == [[1, 2, 3], [9], [1, 2, 3]]
    assert decoded.ended == [False, True, False]
    assert [(rows, step) for _, rows, step in seen] == [([0, 1, 2], 0), ([0, 2], 1), ([0, 2], 2)]
    torch.testing.assert_close(seen[-1][0][1], last, **CLOSE)


def test_rows_of_a_cache_of_its_own_must_advance_alike(llama):
    small = lorc.compress(copy.deepcopy(llama).double(), keep=0.6)
    prompts = [[1, 2, 3], [4, 5]]
    with torch.inference_mode():
        context = Context(small, 2)
        assert not context.ragged
        hidden = context.read(*padded(prompts, side="left")).hidden[:, -1]
        context.read(torch.tensor([[6], [7]]))
        context.rollback(torch.tensor([1, 1]))
        decoded = decode(context, hidden, max_new_tokens=4)
        assert decoded.tokens == [plain_greedy(small, prompt, 4) for prompt in prompts]
        with pytest.raises(TenfoldError, match="one prompt at a time"):
            context.read(torch.tensor([[6], [7]]), torch.tensor([[True], [False]]))
        with pytest.raises(TenfoldError, match="advance alike"):
            context.rollback(torch.tensor([1, 0]))


def test_a_peft_model_is_read_with_its_adapters(llama):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(copy.deepcopy(llama), config)
    tokens = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        context = Context(adapted, 1)
        found = context.logits(context.read(tokens).hidden)
        torch.testing.assert_close(found, adapted(tokens).logits, **CLOSE)
        assert not torch.allclose(found, llama(tokens).logits, atol=1e-3)
        with adapted.disable_adapter():
            torch.testing.assert_close(
                head_logits(adapted, alone(adapted, [1, 2, 3])), llama(tokens).logits[0], **CLOSE
            )


def p_value(counts, law):
    law = np.asarray(law, dtype=np.float64)
    assert counts[law == 0].sum() == 0
    return stats.chisquare(counts[law > 0], law[law > 0] / law.sum() * counts.sum()).pvalue


@pytest.mark.parametrize(
    ("warping", "peers"),
    [
        (Warping(0.7), [TemperatureLogitsWarper(0.7)]),
        (Warping(1.3, top_k=5), [TemperatureLogitsWarper(1.3), TopKLogitsWarper(5)]),
        (Warping(0.9, top_p=0.8), [TemperatureLogitsWarper(0.9), TopPLogitsWarper(0.8)]),
        (Warping(1.0, top_k=7, top_p=0.6), [TopKLogitsWarper(7), TopPLogitsWarper(0.6)]),
    ],
)
def test_warping_equals_transformers(warping, peers):
    logits = 3 * torch.randn(16, 40, generator=torch.Generator().manual_seed(0))
    wanted = logits
    for peer in peers:
        wanted = peer(None, wanted)
    torch.testing.assert_close(warping.probs(logits), wanted.softmax(-1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": -2}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_bad_warpings_say_what_to_give(options, message):
    with pytest.raises(ValueError, match=f"{message} is"):
        Warping(**options)


def test_draw_follows_weights_and_never_meets_a_zero():
    weights = torch.zeros(700)
    weights[1], weights[3], weights[600] = 3.0, 1.0, 2.0
    drawn = draw(weights.expand(ROWS, -1), generator=torch.Generator().manual_seed(0))
    assert p_value(np.bincount(drawn, minlength=700), weights.numpy()) > 1e-3
    with pytest.raises(ValueError, match="sums to 0"):
        draw(torch.zeros(1, 3))


def test_a_generator_gives_the_uniform_numbers_that_could_be_given():
    weights = torch.rand(3, 5, 300, generator=torch.Generator().manual_seed(1))
    uniform = torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    drawn = draw(weights, generator=torch.Generator().manual_seed(7))
    assert torch.equal(drawn, draw(weights, uniform=uniform))
    assert torch.equal(drawn, (weights.double().cumsum(-1) <= (uniform * weights.double().sum(-1))[..., None]).sum(-1))


def test_draws_are_quantiles_and_never_impossible_tokens():
    logits = torch.tensor([1.0, -torch.inf, 2.0] + [-torch.inf] * 600).expand(1001, -1)
    levels = torch.linspace(0, 1, 1001, dtype=torch.float64).clamp(max=1 - 1e-12)
    tokens, log_probs = draw_logits(logits, levels)
    p = torch.tensor([1.0, 2.0]).softmax(-1)
    assert set(tokens.tolist()) == {0, 2}
    assert float((tokens == 0).double().mean()) == pytest.approx(float(p[0]), abs=2e-3)
    assert torch.allclose(log_probs[tokens == 2], p[1].log())
    edges = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0]]).expand(3, -1)
    assert draw(edges, uniform=torch.tensor([0.0, 0.5, 1.0])).tolist() == [1, 3, 3]


def test_drawn_log_probabilities_are_those_at_the_temperature():
    logits = 2 * torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
    uniform = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tokens, log_probs = draw_logits(logits, uniform, temperature=0.7)
    wanted = (logits / 0.7).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    torch.testing.assert_close(log_probs, wanted)
    tokens, log_probs = draw_logits(logits, uniform, temperature=0)
    assert torch.equal(tokens, logits.argmax(-1))
    assert not log_probs.any()
