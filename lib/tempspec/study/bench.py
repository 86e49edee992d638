"""Benchmarks: speculative decoding against plain and against transformers' assisted generation, on real prompts.

The drafters are those of the `cpu` profile's notebook, trained here once by the same recipe and kept (six minutes);
the benchmark itself takes three quarters of an hour on two cores.
All ways decode every prompt in turn; `ours` and `peer` are milliseconds a token, so a ratio of 0.5 is twice the speed.
"""

from collections.abc import Iterator
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from lib import data_dir, zoo
from lib.tempspec.answers import Example, answer
from lib.tempspec.decoder import DecodingStats, SpeculativeDecoder
from lib.tempspec.drafters import FirstOf, ModelDrafter, PromptLookupDrafter
from lib.tempspec.feature import FeatureDrafter, load_feature_model, save_feature_model
from lib.tempspec.modeling import frequent_tokens, load_drafter, save_drafter
from lib.tempspec.study import corpus, peers, recipes
from lib.tempspec.study.costs import measure_costs
from lib.tempspec.trainer import teach

MODEL = "smollm2-135m-instruct"
VOCABULARY, PLAIN_LAYERS, FEATURE_LAYERS = 8192, (0, 1, 29), (10, 20, 29)
TEMPERATURES = (0.0, 1.0)
PROMPTS = 64
GOALS = {0.0: 1 / 1.3, 1.0: 1 / 1.1}  # over `generate`
PAIRS = [
    ("feature drafter", "generate", None),
    ("lookup, then feature drafter", "generate", None),
    ("feature drafter", "no drafter", None),
    ("plain drafter", "generate", None),
    ("plain drafter", "assisted", 1 / 1.2),
    ("feature drafter's blocks", "cost model", 1.1),
]


def cases(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the cases: our ways against `generate`, `assisted_generate` and the cost model, at T = 0 and T = 1."""
    sizes = (2, 8) if quick else (PROMPTS, 96)
    for temperature, (ours, peer, goal) in product(TEMPERATURES, PAIRS):
        measured = partial(_milliseconds, temperature, *sizes, quick=quick)  # when first asked for
        name = f"{ours}, T = {temperature:g}, {sizes[0]} prompts × {sizes[1]} tokens"
        if peer == "cost model":
            name = f"feature drafter, T = {temperature:g}: the clock against the cost model"
        yield {
            "name": name,
            "unit": "ms/token",
            "ours": lambda measured=measured, way=ours: measured()[way],
            "peer": lambda measured=measured, way=peer: measured()[way],
            "peer_name": peer,
            "goal": GOALS[temperature] if peer == "generate" else goal,
        }


@cache
def _milliseconds(temperature: float, count: int, tokens: int, *, quick: bool) -> dict[str, list[float]]:
    """Time all ways on the same prompts; return milliseconds a token on each prompt.

    Of the feature drafter also those of its blocks alone, without reading the prompt, and what the cost model says of
    the same blocks, its parts timed alone; there a prompt that ended with its first token has no blocks.
    """
    target, tokenizer = _target()
    plain, feature = _drafters(quick=quick)
    prompts = corpus.chat_prompts(_records("test"), tokenizer, limit=count)
    stats: list[DecodingStats] = []
    ways = {
        "generate": peers.plain_generate(target, temperature, tokens),
        "assisted": peers.assisted_generate(target, plain, temperature, tokens),
        "no drafter": _way(None, temperature, tokens),
        "plain drafter": _way(ModelDrafter(plain), temperature, tokens),
        "feature drafter": _way(FeatureDrafter(feature), temperature, tokens, stats),
        "lookup, then feature drafter": _way(
            FirstOf(PromptLookupDrafter(), FeatureDrafter(feature)), temperature, tokens
        ),
    }
    seconds = peers.seconds_per_token(ways, prompts)
    after = torch.tensor((prompts[0] * 99)[:100])
    costs = measure_costs(target, FeatureDrafter(feature), after, repeats=3 if quick else 15)
    timed = [each for each in stats[1:] if each.tokens > 1]  # the first was the warm-up
    seconds["feature drafter's blocks"] = [(s.seconds - s.prefill_seconds) / (s.tokens - 1) for s in timed]
    seconds["cost model"] = [s.modelled_seconds(costs.draft, costs.target) / (s.tokens - 1) for s in timed]
    return {way: [1e3 * each for each in values] for way, values in seconds.items()}


def _way(drafter: Any, temperature: float, tokens: int, kept: list[DecodingStats] | None = None) -> peers.Way:
    """Return our way of decoding, which adds what it did to `kept`."""
    gamma = "auto" if drafter is not None else 0
    decoder = SpeculativeDecoder(_target()[0], drafter, gamma=gamma, temperature=temperature)

    def way(ids: torch.Tensor) -> torch.Tensor:
        output = decoder.generate(ids, max_new_tokens=tokens)
        if kept is not None:
            kept.append(output.stats)
        return output.sequences

    return way


@cache
def _records(split: str) -> Any:
    return zoo.load_dataset("sharegpt", split=split)


@cache
def _target() -> tuple[Any, Any]:
    return zoo.load_lm(MODEL, dtype=torch.bfloat16)


@cache
def _drafters(*, quick: bool) -> tuple[Any, Any]:
    """Return the plain and the feature drafter, trained once."""
    target, _ = _target()
    folder = data_dir() / "cache" / "tempspec" / ("bench-quick" if quick else "bench")
    if not (folder / "feature" / "model.safetensors").exists():
        _train(folder, quick=quick)
    plain = load_drafter(folder / "plain", target).to(target.dtype)
    return plain, load_feature_model(folder / "feature", target)


def _train(folder: Path, *, quick: bool) -> None:
    target, tokenizer = _target()
    records = _records("train")
    texts = corpus.text_examples(records, tokenizer, tokens=2_000 if quick else 160_000)
    questions = corpus.chat_prompts(records, tokenizer, limit=4 if quick else 96)
    noise = torch.Generator().manual_seed(0)
    answers: list[Example] = []
    for temperature in (0.0, 0.7, 1.0, 1.3):
        answers += answer(target, questions, temperature, max_new_tokens=8 if quick else 64, generator=noise)
    kept = frequent_tokens([e.tokens for e in [*texts, *answers]], VOCABULARY, target.config.vocab_size)
    plain = recipes.untuned_drafter(target, texts, layers=PLAIN_LAYERS, token_ids=kept)
    save_drafter(teach(plain, answers, loss="ce", progress=False), folder / "plain")
    made = recipes.feature_drafter(target, texts, answers, layers=FEATURE_LAYERS, token_ids=kept)
    save_feature_model(made, folder / "feature")
