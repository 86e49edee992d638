"""Benchmarks of the compressed cache against the model's own: bytes, decode latency and peak memory, on the real model.

Every case measures the compressed model and the uncompressed one in turn, in one process. Caches of a given length are
filled with random latents or keys, since neither time nor size depends on what they hold.
"""

from collections.abc import Callable, Iterator
from functools import cache as memoised
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache

from lib.lorc.cache import LowRankCache
from lib.lorc.compression import compress
from lib.lorc.configuration import geometry, spec_of
from lib.lorc.latents import pack
from lib.lorc.study.evaluation import held_bytes, twin
from lib.zoo import load_lm

MODEL = "smollm2-135m-instruct"
KEEP = 0.6
STEPS = 4  # tokens decoded per timing, then taken back
GOALS = {
    (512, 2): 1.0,
    (2048, 2): 0.9,
    (8192, 2): 0.8,
    (512, 1): 1.1,
    (2048, 1): 1.0,
    (8192, 1): 0.9,
}  # tokens, threads


def cases(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the cases: bytes a token against the full cache and the formula, decode and prefill time, peak memory."""
    full, small = _models()
    tokens, prompt, longest = (64, 128, 512) if quick else (512, 1024, 8192)
    uncompressed = {"peer_name": "uncompressed"}
    yield {
        "name": f"cache bytes a token at {KEEP:.0%} kept",
        "unit": "bytes/token",
        "ours": lambda: held_bytes(_prefill(small, tokens)) / tokens,
        "peer": lambda: held_bytes(_prefill(full, tokens)) / tokens,
        "peer_name": "DynamicCache",
        "goal": KEEP,
    }
    yield {
        "name": "cache bytes a token as held by torch",
        "unit": "bytes/token",
        "ours": lambda: held_bytes(_prefill(small, tokens)) / tokens,
        "peer": lambda: float(spec_of(small.config).plan.bytes_per_token(2)),
        "peer_name": "formula",
        "goal": 1.0,
    }
    for context, threads in ((512, 1),) if quick else tuple(GOALS):
        yield uncompressed | {
            "name": f"decode {STEPS} tokens after {context} on {threads} threads, bf16",
            "curve": f"decode {STEPS} tokens after a context on {threads} threads",
            "size": context,
            "unit": "s",
            "ours": _on(threads, partial(_decode, small, _random_latents(small, context))),
            "peer": _on(threads, partial(_decode, full, _random_keys(full, context))),
            "goal": GOALS[context, threads],
        }
    yield uncompressed | {
        "name": f"prefill {prompt} tokens, bf16",
        "unit": "s",
        "ours": lambda: _prefill(small, prompt),
        "peer": lambda: _prefill(full, prompt),
    }
    yield uncompressed | {
        "name": f"cache and peak of a decode step at {longest}",
        "unit": "MiB",
        "ours": lambda: _peak_mib(small, _random_latents(small, longest)),
        "peer": lambda: _peak_mib(full, _random_keys(full, longest)),
    }


@memoised
def _models() -> tuple[Any, Any]:
    original, _ = load_lm(MODEL, dtype=torch.bfloat16)
    return original, compress(twin(original), KEEP, budget="uniform")


def _random_latents(model: Any, tokens: int) -> LowRankCache:
    cache = LowRankCache(model.config)
    plan = cache.spec.plan
    for index, ranks in enumerate(zip(plan.ranks_k, plan.ranks_v, strict=True)):
        cache.layer(index).append(*(pack(torch.randn(1, tokens, rank, dtype=torch.bfloat16), 16) for rank in ranks))
    return cache


def _random_keys(model: Any, tokens: int) -> DynamicCache:
    sizes, cache = geometry(model), DynamicCache(config=model.config)
    for index in range(sizes.layers):
        shape = (1, sizes.kv_heads, tokens, sizes.head_dim)
        keys, values = (torch.randn(shape, dtype=torch.bfloat16) for _ in range(2))
        cache.update(keys, values, index)
    return cache


def _on(threads: int, run: Callable[[], None]) -> Callable[[], None]:
    """Run with a number of threads, and leave torch's own as it was."""

    def limited() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            run()
        finally:
            torch.set_num_threads(before)

    return limited


@torch.inference_mode()
def _decode(model: Any, cache: Any, steps: int = STEPS) -> None:
    token = torch.tensor([[1]])
    for _ in range(steps):
        model(input_ids=token, cache=cache, use_cache=True)
    cache.crop(-steps)


@torch.inference_mode()
def _prefill(model: Any, tokens: int) -> Any:
    ids = torch.randint(0, 1000, (1, tokens), generator=torch.Generator().manual_seed(0))
    return model(input_ids=ids, use_cache=True, logits_to_keep=1).cache


def _peak_mib(model: Any, cache: Any) -> float:
    """Return the cache's bytes plus the most that one decode step has allocated at once, in MiB."""
    held = held_bytes(cache)
    _decode(model, cache, steps=1)  # so that scratch memory and angles exist
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        _decode(model, cache, steps=1)
    level = peak = 0
    # What an operation allocates is counted at its end, what the interpreter frees when it does.
    for event in sorted(record.events() or [], key=lambda event: event.time_range.end):
        level += event.self_cpu_memory_usage
        peak = max(peak, level)
    return (held + peak) / 2**20
