"""On the real model: at temperature 0, token for token what `generate` gives; peers and costs that can be measured."""

import pytest
import torch

from lib import zoo
from lib.core.scoring import padded
from lib.tempspec import FirstOf, ModelDrafter, PromptLookupDrafter, SpeculativeDecoder, truncate
from lib.tempspec.study import corpus
from lib.tempspec.study.costs import measure_costs
from lib.tempspec.study.peers import assisted_generate, plain_generate, seconds_per_token

NEW = 16


@pytest.fixture(scope="module")
def real():
    return zoo.load_lm("smollm2-135m-instruct", dtype="float32")


@pytest.fixture(scope="module")
def prompts(real):
    return corpus.chat_prompts(zoo.load_dataset("sharegpt", split="test", limit=200), real[1], limit=8)


def test_greedy_tokens_are_generates_on_real_prompts(real, prompts):
    target, _ = real
    # The truncated model drafts poorly and the lookup sometimes well: blocks are refused and accepted in turn.
    drafter = FirstOf(PromptLookupDrafter(shortest=1), ModelDrafter(truncate(target, [0, 29], 4096)))
    decoder = SpeculativeDecoder(target, drafter, gamma=3, temperature=0)
    accepted = 0
    for prompt in prompts:
        ids = torch.tensor([prompt])
        wanted = target.generate(ids, do_sample=False, max_new_tokens=NEW, attention_mask=torch.ones_like(ids))
        output = decoder.generate(ids, max_new_tokens=NEW)
        assert torch.equal(output.sequences, wanted)
        accepted += sum(output.stats.accepted)
    assert accepted > 8  # otherwise nothing was rolled forward


def test_a_padded_batch_decodes_as_its_rows_do(real, prompts):
    target, _ = real
    ids, mask = padded(prompts[:4], side="left")
    decoder = SpeculativeDecoder(target, PromptLookupDrafter(shortest=1), gamma=3, temperature=0)
    together = decoder.generate(ids, mask, NEW)
    for row, prompt, new in zip(together.sequences, prompts, together.new_tokens.tolist(), strict=False):
        alone = decoder.generate(torch.tensor([prompt]), max_new_tokens=NEW).sequences[0, len(prompt) :]
        assert row[ids.shape[1] : ids.shape[1] + new].tolist() == alone.tolist()


def test_out_of_domain_prompts_come_in_turn_from_their_tasks(real):
    rows = zoo.load_dataset("evals", split="test")
    prompts = corpus.task_prompts(rows, real[1], "code", limit=6)
    assert len({tuple(prompt) for prompt in prompts}) == 6
    with pytest.raises(ValueError, match="use one of reasoning, code"):
        corpus.task_prompts(rows, real[1], "poetry", limit=2)
    with pytest.raises(ValueError, match="lower limit"):
        corpus.task_prompts(rows, real[1], "code", limit=2, max_tokens=5)


def test_costs_and_peers_are_measured_on_the_same_prompts(real, prompts):
    target, _ = real
    drafter = truncate(target, [0], 2048)
    costs = measure_costs(target, ModelDrafter(drafter), torch.tensor(prompts[0]), longest=2, repeats=2)
    assert 0 < costs.ratio < 1
    assert set(costs.target) == {1, 2, 3}
    assert costs.speedup(1.0, 2) == pytest.approx(3 * costs.target[1] / (2 * costs.draft + costs.target[3]))
    ways = {"plain": plain_generate(target, 0.0, 3), "assisted": assisted_generate(target, drafter, 1.0, 3)}
    seconds = seconds_per_token(ways, prompts[:2])
    assert {name: len(times) for name, times in seconds.items()} == {"plain": 2, "assisted": 2}
    assert all(t > 0 for times in seconds.values() for t in times)
