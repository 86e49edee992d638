"""Trees on every family: greedy tokens are those of whole passes, and the law is that of transformers' own warpers."""

import copy
import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lib import TenfoldError
from lib.tempspec import (
    AutoTree,
    DynamicTree,
    FeatureDrafter,
    FeatureModel,
    ModelDrafter,
    PromptLookupDrafter,
    SpeculativeDecoder,
    StaticTree,
    truncate,
)
from lib.tempspec.trees import TreeContext
from tests import families

WORDS, NEW, ROWS = 5, 3, 1500
PLACES = WORDS ** torch.arange(NEW - 1, -1, -1)
PROMPT = torch.tensor([[3, 4, 3, 3, 4, 4, 3]])  # longer than the window
WARPINGS = {
    "T = 0.7": ({"temperature": 0.7}, [TemperatureLogitsWarper(0.7)]),
    "T = 1.3, top 3": ({"temperature": 1.3, "top_k": 3}, [TemperatureLogitsWarper(1.3), TopKLogitsWarper(3)]),
    "top p .8": ({"top_p": 0.8}, [TopPLogitsWarper(0.8)]),
}
# With a law that is exact, a p-value falls below this in one test of 10,000: in .5 % of runs of all 48.
LEVEL = 1e-4


def near(family, target):
    """A model whose tokens are accepted at times."""
    other = families.tiny(family, seed=1, vocab_size=target.config.vocab_size)
    with torch.no_grad():
        for mine, theirs in zip(other.parameters(), target.parameters(), strict=True):
            mine.copy_(theirs + 0.05 * mine)
    return other


@torch.inference_mode()
def warped_law(target, warpers):
    """Probability of every continuation of NEW tokens by whole passes and transformers' warpers."""
    continuations = torch.tensor(list(itertools.product(range(WORDS), repeat=NEW)))
    rows = torch.cat([PROMPT.expand(len(continuations), -1), continuations], dim=1)
    logits = target(rows, use_cache=False).logits[:, PROMPT.shape[1] - 1 : -1].float()
    warped = LogitsProcessorList(warpers)(None, logits.reshape(-1, WORDS)).reshape_as(logits)
    chosen = warped.softmax(-1).gather(-1, continuations[..., None]).squeeze(-1)
    return chosen.prod(dim=1).double().numpy()


def p_value(sequences, law):
    cells = (sequences[:, PROMPT.shape[1] :][:, :NEW] * PLACES).sum(1)
    counts = np.bincount(cells, minlength=WORDS**NEW)
    assert counts[law < 1e-9].sum() == 0
    expected = law / law.sum() * len(sequences)
    rare = expected < 5  # joined into one cell, as the chi-square test needs
    joined = [np.append(x[~rare], x[rare].sum()) for x in (counts, expected)]
    return stats.chisquare(joined[0][joined[1] > 0], joined[1][joined[1] > 0]).pvalue


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_law_of_trees_is_transformers_own(family):
    target = families.tiny(family, vocab_size=WORDS)
    drafter = ModelDrafter(near(family, target))
    shapes = [DynamicTree(width=4, depth=2, floor=0.0), StaticTree([(0,), (1,), (2,), (0, 0), (0, 1), (1, 0)])]
    shapes.append(AutoTree(width=3, draft_cost=0.01, token_cost=0.01))
    accepted = 0
    for number, (options, warpers) in enumerate(WARPINGS.values()):
        law = warped_law(target, warpers)
        decoder = SpeculativeDecoder(target, drafter, gamma=shapes[number], **options)
        noise = torch.Generator().manual_seed(number)
        made = decoder.generate(PROMPT.expand(ROWS, -1), None, NEW + 1, noise, eos_token_id=[])
        accepted += sum(made.stats.accepted)
        assert p_value(made.sequences, law) > LEVEL
    assert accepted > ROWS  # otherwise nothing of a tree was kept


@pytest.mark.parametrize("family", families.FAMILIES)
def test_greedy_trees_give_the_tokens_of_whole_passes(family):
    """Ragged prompts in one batch, past the window where there is one, rolled back and packed."""
    target = families.tiny(family)
    tokens, mask = families.prompts()
    wanted = families.rows_alone(target, tokens, mask, new=14)
    drafter = ModelDrafter(near(family, target))
    free = AutoTree(gamma=3, draft_cost=0.0, token_cost=0.0, most=6)
    ways = ((DynamicTree(width=4, depth=3), drafter), (free, drafter), (StaticTree(), PromptLookupDrafter(shortest=1)))
    for shape, way in ways:
        made = SpeculativeDecoder(target, way, gamma=shape, temperature=0.0).generate(tokens, mask, 14)
        for row, want in zip(made.sequences[:, tokens.shape[1] :].tolist(), wanted, strict=True):
            assert row[: len(want)] == want
    assert made.stats.rounds > 1


def test_trees_of_features_and_lookups_keep_the_law():
    target = families.tiny("Llama", vocab_size=WORDS)
    torch.manual_seed(0)
    ways = [
        FeatureDrafter(FeatureModel(target, layers=(1, 2), token_ids=torch.tensor([1, 3, 4]))),
        PromptLookupDrafter(shortest=1),
        ModelDrafter(truncate(target, [0, 2], token_ids=torch.tensor([0, 3, 4]))),
    ]
    for number, way in enumerate(ways):
        decoder = SpeculativeDecoder(target, way, gamma=DynamicTree(width=3, depth=2, floor=0.0), temperature=1.0)
        noise = torch.Generator().manual_seed(number)
        made = decoder.generate(PROMPT.expand(ROWS, -1), None, NEW + 1, noise, eos_token_id=[])
        assert p_value(made.sequences, warped_law(target, [])) > LEVEL
        assert sum(made.stats.accepted) > 100


def test_a_wider_tree_gains_more_tokens_a_block():
    target = families.tiny("Llama")
    drafter = ModelDrafter(near("Llama", target))
    gained = []
    for width in (1, 4):
        decoder = SpeculativeDecoder(
            target, drafter, gamma=DynamicTree(width=width, depth=3, floor=0.0), temperature=1.0
        )
        noise = torch.Generator().manual_seed(0)
        gained.append(decoder.generate(PROMPT.expand(64, -1), None, 24, noise, eos_token_id=[]).stats.block_efficiency)
    assert gained[1] > gained[0] + 0.1


def test_a_tree_is_refused_where_it_cannot_be_read_exactly():
    target = families.tiny("Llama")
    for change, message in (
        ({"_attn_implementation": "flash_attention_2"}, "attn_implementation"),
        ({"_attn_implementation": "sdpa", "layer_types": ["chunked_attention"] * 3}, "not chunked_attention"),
    ):
        for name, value in change.items():
            setattr(target.config, name, value)
        with pytest.raises(TenfoldError, match=message):
            TreeContext(target, 1).grow(PROMPT, PROMPT * 0 - 1, PROMPT > 0)


SLOTTED = {
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128},
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 6,
        "max_position_embeddings": 128,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
}


@pytest.mark.parametrize("family", SLOTTED)
def test_distances_in_slots_of_the_cache_are_exact_in_chains_and_refused_in_trees(family):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=40, eos_token_id=None, bos_token_id=None, **SLOTTED[family])
    target = AutoModelForCausalLM.from_config(config).double().eval()
    for weight in target.parameters():
        if weight.ndim > 1:
            weight.data.normal_(0, 0.5)
    drafter = copy.deepcopy(target)
    for weight in drafter.parameters():
        weight.data.add_(torch.randn_like(weight), alpha=0.03)
    prompts = torch.randint(1, 40, (6, 9))
    options = {"do_sample": False, "max_new_tokens": 40, "pad_token_id": 0}
    wanted = torch.cat([target.generate(prompt[None], **options) for prompt in prompts])
    decoder = SpeculativeDecoder(target, ModelDrafter(drafter), gamma=3, temperature=0)
    assert torch.equal(decoder.generate(prompts, max_new_tokens=40).sequences, wanted)
    decoder = SpeculativeDecoder(target, ModelDrafter(drafter), gamma=DynamicTree(width=3, depth=3), temperature=0)
    with pytest.raises(TenfoldError, match=f"{family} measures distance in slots"):
        decoder.generate(prompts[:1], max_new_tokens=40)
