"""Samples follow the policy's own law, do not depend on their batch, and stop at the end token."""

import itertools

import pytest
import torch

from lib.preference import questions, sample


def exact_law(model, prompt, steps):
    """Probability of every response of at most `steps` tokens, by enumeration with the plain forward pass."""
    law = {}
    for tokens in itertools.product(range(5), repeat=steps):
        cut = tokens[: tokens.index(1) + 1] if 1 in tokens else tokens
        if cut in law:
            continue
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *cut]])).logits[0, len(prompt) - 1 : -1].double()
        law[cut] = float(logits.log_softmax(-1).gather(-1, torch.tensor(cut)[:, None]).sum())
    return law


def test_frequencies_and_log_probabilities_are_the_policys(enumerable):
    model, words = enumerable
    prompts, draws = [[3, 2, 4], [4]], 4000  # of two lengths: the second is padded on the left
    found = sample(model, words, prompts, draws, max_new_tokens=3, batch_size=2 * draws, seed=3, progress=False)
    for prompt, responses in zip(prompts, found, strict=True):
        law = exact_law(model, prompt, 3)
        assert sum(map(lambda v: torch.tensor(v).exp().item(), law.values())) == pytest.approx(1)
        counts = {tokens: 0 for tokens in law}
        for r in responses:
            counts[r.tokens] += 1
            assert r.log_prob == pytest.approx(law[r.tokens], abs=2e-4)
            assert r.finished == (r.tokens[-1] == 1)
        expected = torch.tensor(list(law.values())).exp() * draws
        seen = torch.tensor(list(counts.values())).float()
        big = expected > 5
        chi2 = float(((seen - expected)[big] ** 2 / expected[big]).sum())
        degrees = int(big.sum())
        assert chi2 < degrees + 5 * (2 * degrees) ** 0.5


def test_a_rows_words_do_not_depend_on_the_batch(enumerable):
    model, words = enumerable
    prompts = [[2], [3, 3, 4], [4, 2], [2, 2, 2, 2, 2]]
    whole = sample(model, words, prompts, 3, max_new_tokens=8, batch_size=100, seed=1, progress=False)
    apart = sample(model, words, prompts, 3, max_new_tokens=8, batch_size=3, seed=1, progress=False)
    assert [[r.tokens for r in g] for g in whole] == [[r.tokens for r in g] for g in apart]
    other = sample(model, words, prompts, 3, max_new_tokens=8, seed=2, progress=False)
    assert [[r.tokens for r in g] for g in whole] != [[r.tokens for r in g] for g in other]


def test_rows_end_at_the_end_token_even_when_others_go_on(enumerable):
    model, words = enumerable
    for group in sample(model, words, [[2], [3, 3, 4]], 40, max_new_tokens=20, seed=0, progress=False):
        ended = [r for r in group if r.finished]
        assert ended
        assert len(ended) < len(group) or len({len(r.tokens) for r in ended}) > 1
        for r in group:
            assert 1 not in r.tokens[:-1]
            assert r.finished or len(r.tokens) == 20


def test_greedy_is_generates(tiny_policy, tokenizer):
    prompts = [[5, 6, 7, 8], [9], [10, 11]]
    found = sample(tiny_policy, tokenizer, prompts, 2, temperature=0, max_new_tokens=6, progress=False)
    for prompt, group in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        wanted = tiny_policy.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6, pad_token_id=0
        )
        assert list(group[0].tokens) == wanted[0, len(prompt) :].tolist()
        assert group[1] == group[0]


def test_temperature_sharpens(enumerable):
    model, words = enumerable
    law = exact_law(model, [2], 1)
    top = max(law, key=law.get)
    share = {}
    for t in (0.25, 1.0):
        (group,) = sample(model, words, [[2]], 2000, max_new_tokens=1, temperature=t, batch_size=2000, progress=False)
        share[t] = sum(r.tokens == top for r in group) / 2000
    logits = torch.tensor(list(law.values()))
    assert share[0.25] == pytest.approx(float((logits / 0.25).softmax(-1).max()), abs=0.05)
    assert share[1.0] == pytest.approx(float(logits.softmax(-1).max()), abs=0.05)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompts"),
        (["  "], {}, "prompt 0 is empty"),
        ([[3], []], {}, "prompt 1 is empty"),
        ([list(range(3, 120))], {"max_new_tokens": 20}, "context of 128"),
        ([[3]], {"k": 0}, "draw nothing"),
        ([[3]], {"temperature": -1.0}, "draw nothing"),
    ],
)
def test_bad_input_is_one_sentence(tiny_policy, tokenizer, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        sample(tiny_policy, tokenizer, prompts, **{"k": 2, "progress": False} | options)


def test_questions_keep_the_responses_that_a_data_set_has(tokenizer):
    said = [{"role": "user", "content": "What is rain?"}, {"role": "assistant", "content": "Water that falls " * 4}]
    record = {"messages": said, "chosen": said, "rejected": "Nothing."}
    (found,) = questions([record, record], tokenizer, limit=1)
    assert found.existing == (said[1]["content"], "Nothing.")
    (plain,) = questions([{"messages": said}], tokenizer, limit=1)
    assert plain.existing == ()
