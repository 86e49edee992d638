"""Benchmarks: our decoding against transformers' own, on Spec-Bench's classes of tasks (rebuilt) and conversations.

The lookup drafter needs no training and is timed on every class; the shipped feature drafter on conversations. All ways
decode every prompt in turn; `ours` and `peer` are milliseconds a token, so a ratio of 0.5 is twice the speed, or passes
of the target a token: one over the mean accepted tokens (Spec-Bench's measure), of which plain decoding has 1.
"""

from collections.abc import Iterator
from functools import cache, partial
from itertools import product
from typing import Any

import torch

from lib import zoo
from lib.tempspec.decoder import SpeculativeDecoder
from lib.tempspec.feature import FeatureDrafter, load_feature_model
from lib.tempspec.lookup import FirstOf, PromptLookupDrafter
from lib.tempspec.metrics import DecodingStats
from lib.tempspec.modeling import truncate
from lib.tempspec.shape import AutoTree, DynamicTree
from lib.tempspec.study import corpus, peers
from lib.tempspec.study.costs import measure_costs
from lib.zoo import shipped

MODEL = "smollm2-135m-instruct"
LONGEST = 480  # tokens of a task's prompt
TEMPERATURES = (0.0, 1.0)
CONVERSATIONS = "conversations"
SPEED = {0.0: 0.65, 1.0: 0.80}  # goals over `generate` on conversations
COPYING = {"summarisation": 0.5}  # on classes that copy
NEVER = 1.03  # on every class
LOOKUP = 0.9  # over transformers' prompt lookup
ASSISTED = 0.75  # over transformers' assisted generation
KEPT = (*range(18), *range(21, 30))  # the target's layers that make its assistant
MODELLED = 1.1  # the clock over the cost model
LEVEL = 0.13  # of a plain step: what a level of feature drafts takes on two cores, timed on training prompts


def cases(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the cases: each class at T = 0 and T = 1 by look-up, and conversations by the feature drafter."""
    classes = ["summarisation"] if quick else list(corpus.SPEC_BENCH)
    for temperature, name in product(TEMPERATURES, [*classes, CONVERSATIONS]):
        measured = partial(_measured, name, temperature, quick=quick)
        goal = COPYING.get(name, NEVER)
        yield _case(measured, name, temperature, "look-up", "generate", goal)
        yield _case(measured, name, temperature, "look-up", "prompt lookup", LOOKUP)
        yield _case(measured, name, temperature, "passes, look-up", "passes, plain", None)
        if name == CONVERSATIONS:
            yield _case(measured, name, temperature, "look-up, then features", "generate", SPEED[temperature])
            yield _case(measured, name, temperature, "look-up, then features", "assisted", ASSISTED)
            yield _case(measured, name, temperature, "features", "generate", None)
            yield _case(measured, name, temperature, "tree of features", "generate", None)
            yield _case(measured, name, temperature, "passes, tree of features", "passes, features", None)
            yield _case(measured, name, temperature, "blocks of features", "cost model", MODELLED)


def _case(measured: Any, name: str, temperature: float, ours: str, peer: str, goal: float | None) -> dict[str, Any]:
    return {
        "name": f"{name}, T = {temperature:g}: {ours} against {peer}",
        "unit": "passes/token" if ours.startswith("passes") else "ms/token",
        "ours": lambda: measured()[ours],  # when first asked for
        "peer": lambda: measured()[peer],
        "peer_name": peer,
        "goal": goal,
    }


@cache
def _measured(name: str, temperature: float, *, quick: bool) -> dict[str, list[float]]:
    """Time all ways on the same prompts; return milliseconds and passes a token on each prompt.

    Of the feature drafter also its blocks alone, without reading the prompt, and what the cost model says of the same
    blocks, its parts timed alone.
    """
    target, tokenizer = _target()
    count, tokens = (2, 8) if quick else (64, 64)
    if name == CONVERSATIONS:
        prompts = corpus.chat_prompts(_records("test"), tokenizer, limit=count)
    else:
        rows: Any = zoo.load_dataset("evals", split="test")
        prompts = corpus.task_prompts(rows, tokenizer, name, limit=2 if quick else 8, max_tokens=LONGEST)
    stats: dict[str, list[DecodingStats]] = {}

    def ours(way: str, drafter: Any, gamma: Any = "auto") -> peers.Way:
        decoder, kept = (
            SpeculativeDecoder(target, drafter, gamma=gamma, temperature=temperature),
            stats.setdefault(way, []),
        )

        def decode(ids: torch.Tensor) -> torch.Tensor:
            output = decoder.generate(ids, max_new_tokens=tokens)
            kept.append(output.stats)
            return output.sequences

        return decode

    ways = {
        "generate": peers.plain_generate(target, temperature, tokens),
        "prompt lookup": peers.lookup_generate(target, temperature, tokens),
        "look-up": ours("look-up", PromptLookupDrafter()),
    }
    if name == CONVERSATIONS:
        features = FeatureDrafter(_feature())
        ways["features"] = ours("features", features)
        ways["tree of features"] = ours("tree of features", features, DynamicTree())
        both = FirstOf(PromptLookupDrafter(), features)
        ways["look-up, then features"] = ours("look-up, then features", both, AutoTree(draft_cost=LEVEL))
        assistant = truncate(target, KEPT, token_ids=features.model.head.token_ids)
        ways["assisted"] = peers.assisted_generate(target, assistant, temperature, tokens)
    table = {way: [1e3 * each for each in seconds] for way, seconds in peers.seconds_per_token(ways, prompts).items()}
    for way, kept in stats.items():  # the first was the warm-up
        table[f"passes, {way}"] = [1 / s.block_efficiency for s in kept[1:]]
    table["passes, plain"] = [1.0] * len(prompts)
    if name == CONVERSATIONS:
        costs = measure_costs(target, features, torch.tensor((prompts[0] * 99)[:100]), repeats=3 if quick else 15)
        timed = [each for each in stats["features"][1:] if each.tokens > 1]
        table["blocks of features"] = [1e3 * (s.seconds - s.prefill_seconds) / (s.tokens - 1) for s in timed]
        model_of = [s.modelled_seconds(costs.draft, costs.target) / (s.tokens - 1) for s in timed]
        table["cost model"] = [1e3 * each for each in model_of]
    return table


@cache
def _records(split: str) -> Any:
    return zoo.load_dataset("sharegpt", split=split)


@cache
def _target() -> tuple[Any, Any]:
    return zoo.load_lm(MODEL, dtype=torch.bfloat16)


@cache
def _feature() -> Any:
    """Return the shipped feature drafter."""
    return load_feature_model(shipped.weights("tempspec", "feature"), _target()[0])
