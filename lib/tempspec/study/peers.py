"""Decoding the same prompts by different ways, timed prompt by prompt in turn: ours, and transformers' own."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lib.zoo.models import quiet

Way = Callable[[Tensor], Tensor]  # token ids [1, prompt] to token ids [1, prompt + new]


def plain_generate(target: Any, temperature: float, new_tokens: int) -> Way:
    """Return `target.generate`, plain decoding."""
    return lambda ids: target.generate(ids, **_options(target, ids, temperature, new_tokens))


def assisted_generate(target: Any, assistant: Any, temperature: float, new_tokens: int) -> Way:
    """Return `target.generate` with an assistant model: transformers' speculative decoding, with its own defaults."""

    def way(ids: Tensor) -> Tensor:
        with quiet():  # the assistant is called with options that transformers itself calls deprecated
            return target.generate(ids, assistant_model=assistant, **_options(target, ids, temperature, new_tokens))

    return way


def lookup_generate(target: Any, temperature: float, new_tokens: int, *, drafted: int = 10) -> Way:
    """Return `target.generate` with transformers' prompt lookup of so many tokens a block (10 is its users' habit)."""
    options = {"prompt_lookup_num_tokens": drafted}
    return lambda ids: target.generate(ids, **options, **_options(target, ids, temperature, new_tokens))


def _options(target: Any, ids: Tensor, temperature: float, new_tokens: int) -> dict[str, Any]:
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    pad = target.generation_config.pad_token_id
    pad = pad if pad is not None else target.generation_config.eos_token_id
    options = {"max_new_tokens": new_tokens, "pad_token_id": pad, "attention_mask": torch.ones_like(ids)}
    return {"do_sample": False, **options, **sampling}


def seconds_per_token(
    ways: Mapping[str, Way], prompts: Sequence[Sequence[int]], *, device: Any = None, seed: int = 0
) -> dict[str, list[float]]:
    """Return seconds per new token of each way on each prompt, the ways in turn on each, after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for place, prompt in enumerate([prompts[0], *prompts]):
        ids = torch.tensor([list(prompt)], device=device)
        for name, way in ways.items():
            torch.manual_seed(seed + place)
            began = time.perf_counter()
            new = way(ids).shape[1] - ids.shape[1]
            if place:
                seconds[name].append((time.perf_counter() - began) / new)
    return seconds
