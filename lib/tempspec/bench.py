"""Benchmarks: speculative decoding against plain and against transformers' assisted generation, on real prompts.

The drafters are those of the `cpu` profile's notebook, trained here once by the same recipe and kept (six minutes);
the benchmark itself takes three quarters of an hour on two cores.
All ways decode every prompt in turn; `ours` and `peer` are milliseconds a token, so a ratio of 0.5 is twice the speed.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lib import data_dir, zoo
from lib.tempspec import corpus, peers, recipe
from lib.tempspec.costs import measure_costs
from lib.tempspec.decoder import SpeculativeDecoder
from lib.tempspec.drafters import ModelDrafter
from lib.tempspec.feature import FeatureDrafter, load_feature_model, save_feature_model
from lib.tempspec.heads import frequent_tokens
from lib.tempspec.lessons import Example, answer
from lib.tempspec.lookup import FirstOf, PromptLookupDrafter
from lib.tempspec.stats import DecodingStats
from lib.tempspec.teaching import teach
from lib.tempspec.truncate import load_drafter, save_drafter

MODEL = "smollm2-135m-instruct"
VOCABULARY, PLAIN_LAYERS, FEATURE_LAYERS = 8192, (0, 1, 29), (10, 20, 29)
TEMPERATURES = (0.0, 1.0)
PROMPTS = 64
GOALS = {0.0: 1 / 1.3, 1.0: 1 / 1.1}


def cases(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the cases: our ways against `generate`, `assisted_generate` and the cost model, at T = 0 and T = 1."""
    sizes = (2, 8) if quick else (PROMPTS, 96)
    for temperature in TEMPERATURES:
        measured = _Measured(temperature, *sizes, quick=quick)
        pairs = [
            ("feature drafter", "generate", GOALS[temperature]),
            ("lookup, then feature drafter", "generate", GOALS[temperature]),
            ("feature drafter", "no drafter", None),
            ("plain drafter", "generate", GOALS[temperature]),
            ("plain drafter", "assisted", 1 / 1.2),
        ]
        for ours, peer, goal in pairs:
            yield {
                "name": f"{ours}, T = {temperature:g}, {sizes[0]} prompts × {sizes[1]} tokens",
                "unit": "ms/token",
                "ours": lambda way=ours, m=measured: m.milliseconds(way),
                "peer": lambda way=peer, m=measured: m.milliseconds(way),
                "peer_name": peer,
                "goal": goal,
            }
        yield {
            "name": f"feature drafter, T = {temperature:g}: the clock against the cost model",
            "unit": "ms/token",
            "ours": lambda m=measured: m.blocks_milliseconds(),
            "peer": lambda m=measured: m.modelled_milliseconds(),
            "peer_name": "cost model",
            "goal": 1.1,
        }


class _Measured:
    """All ways on the same prompts at one temperature, timed when first asked for."""

    def __init__(self, temperature: float, prompts: int, tokens: int, *, quick: bool) -> None:
        self.temperature, self.count, self.tokens, self.quick = temperature, prompts, tokens, quick
        self.stats: list[DecodingStats] = []

    @cache  # noqa: B019 - lives as long as the benchmark
    def _seconds(self) -> dict[str, list[float]]:
        target, tokenizer = _target()
        plain, feature = _drafters(quick=self.quick)
        prompts = corpus.chat_prompts(_records("test"), tokenizer, limit=self.count)
        lookup = FirstOf(PromptLookupDrafter(), FeatureDrafter(feature))
        ways = {
            "generate": peers.plain_generate(target, self.temperature, self.tokens),
            "assisted": peers.assisted_generate(target, plain, self.temperature, self.tokens),
            "no drafter": self._ours(None),
            "plain drafter": self._ours(ModelDrafter(plain)),
            "feature drafter": self._ours(FeatureDrafter(feature), self.stats),
            "lookup, then feature drafter": self._ours(lookup),
        }
        return peers.seconds_per_token(ways, prompts)

    def _ours(self, drafter: Any, kept: list[DecodingStats] | None = None) -> peers.Way:
        gamma = "auto" if drafter is not None else 0
        decoder = SpeculativeDecoder(_target()[0], drafter, gamma=gamma, temperature=self.temperature)

        def way(ids: torch.Tensor) -> torch.Tensor:
            output = decoder.generate(ids, max_new_tokens=self.tokens)
            if kept is not None:
                kept.append(output.stats)
            return output.sequences

        return way

    def milliseconds(self, way: str) -> list[float]:
        """Milliseconds a token on each prompt."""
        return [1e3 * seconds for seconds in self._seconds()[way]]

    def blocks_milliseconds(self) -> list[float]:
        """Milliseconds a token of the blocks alone, without reading the prompt, on each prompt."""
        self._seconds()
        return [1e3 * (s.seconds - s.prefill_seconds) / (s.tokens - 1) for s in self._timed()]

    def modelled_milliseconds(self) -> list[float]:
        """Milliseconds a token of the same blocks by the cost model, its parts timed alone."""
        self._seconds()
        target, tokenizer = _target()
        _, feature = _drafters(quick=self.quick)
        prompt = corpus.chat_prompts(_records("test"), tokenizer, limit=1)[0]
        tokens = torch.tensor((prompt * 99)[:100])
        costs = measure_costs(target, FeatureDrafter(feature), tokens, repeats=3 if self.quick else 15)
        return [1e3 * s.modelled_seconds(costs.draft, costs.target) / (s.tokens - 1) for s in self._timed()]

    def _timed(self) -> list[DecodingStats]:
        """Statistics of the prompts that were timed (the first was the warm-up) and went past their first token."""
        return [stats for stats in self.stats[1:] if stats.tokens > 1]


@cache
def _records(split: str) -> Any:
    return zoo.load_dataset("sharegpt", split=split)


@cache
def _target() -> tuple[Any, Any]:
    return zoo.load_lm(MODEL, dtype=torch.bfloat16)


@cache
def _drafters(*, quick: bool) -> tuple[Any, Any]:
    """The plain and the feature drafter, trained once."""
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
    few = corpus.text_examples(records, tokenizer, tokens=2_000 if quick else 160_000)
    plain = recipe.untuned_drafter(target, few, layers=PLAIN_LAYERS, token_ids=kept)
    save_drafter(teach(plain, answers, loss="ce", progress=False), folder / "plain")
    made = recipe.feature_drafter(target, texts, answers, layers=FEATURE_LAYERS, token_ids=kept)
    save_feature_model(made, folder / "feature")
