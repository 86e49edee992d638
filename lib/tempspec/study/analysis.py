"""What the notebook measures besides the cost of decoding: entropy, acceptance over distillations, exactness."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lib.core.generation import Warping
from lib.core.statistics import Estimate, bootstrap, crossed
from lib.tempspec.answers import Example
from lib.tempspec.decoder import SpeculativeDecoder
from lib.tempspec.drafters import Drafter


@torch.inference_mode()
def entropies(target: Any, examples: Sequence[Example], temperature: float) -> list[float]:
    """Return the target's mean entropy over the tokens of each answer, in nats, at a temperature."""
    warping, means = Warping(temperature), []
    for example in examples:
        logits = target(example.tokens[None].to(target.device)).logits[0, example.start - 1 : -1]
        means.append(float(torch.special.entr(warping.probs(logits)).sum(-1).mean()))
    return means


class Acceptances:
    """Acceptance `alpha` by kind of distillation `kd`, its `number`, `where`, `temperature` and `prompt`."""

    def __init__(self, frame: pd.DataFrame, *, seed: int = 0) -> None:
        self.frame, self.seed = frame, seed
        self._parts = dict(list(frame.groupby(["kd", "where", "temperature"])))
        self.numbers = frame["number"].nunique()

    def table(self, kd: str, where: str, temperature: float) -> Float[np.ndarray, "prompts distillations"]:
        """Return acceptance of each prompt by each distillation of a kind; the untuned drafter counts for all."""
        values = self._parts[kd, where, temperature].pivot(index="prompt", columns="number", values="alpha")
        table = values.sort_index().to_numpy()
        return np.repeat(table, self.numbers, axis=1) if kd == "untuned" else table

    def untuned(self, where: str, temperature: float) -> Float[np.ndarray, " prompts"]:
        """Return the untuned drafter's acceptance of each prompt."""
        return self.table("untuned", where, temperature)[:, 0]

    def ahead(self, kd: str, others: Sequence[str], where: str, temperature: float) -> Float[np.ndarray, "p d"]:
        """Return how much more a kind accepts than others do on average [prompts, distillations]."""
        mean = np.mean([self.table(other, where, temperature) for other in others], axis=0)
        return self.table(kd, where, temperature) - mean

    def ahead_of_best(self, kd: str, others: Sequence[str], where: str, temperature: float) -> Float[np.ndarray, "p d"]:
        """Return how much more a kind accepts than the best other one [prompts, distillations].

        The best other is chosen on every second prompt for the prompts between, and the other way round: choosing it on
        the prompts that it is compared on would make it look better than it is.
        """
        own, rest = self.table(kd, where, temperature), [self.table(other, where, temperature) for other in others]
        ahead, fold = np.empty_like(own), np.arange(len(own)) % 2 == 0
        for part in (fold, ~fold):
            best = max(rest, key=lambda table, part=part: table[~part].mean())
            ahead[part] = own[part] - best[part]
        return ahead

    def estimate(self, values: Float[np.ndarray, " prompts"], statistic: Callable[..., float] = np.mean) -> Estimate:
        """Return a statistic of one value a prompt with its interval."""
        return bootstrap(values, statistic=statistic, seed=self.seed, unit="prompts")


def over_both(difference: Float[np.ndarray, "prompts distillations"]) -> Estimate:
    """Return the mean of a difference over prompts and distillations, both of which would differ in a rerun."""
    return crossed(difference.T, unit="distillations x prompts")


def power(
    effect: float, *, prompts: int, distillations: int, of_prompts: float, of_distillations: float, draws: int = 400
) -> float:
    """Return how often the interval over both lies above 0, at standard deviations of prompts and of distillations."""
    noise = np.random.default_rng(0)
    found = 0
    for _ in range(draws):
        rows, columns = noise.normal(0, of_prompts, (prompts, 1)), noise.normal(0, of_distillations, distillations)
        found += over_both(effect + rows + columns + noise.normal(0, of_prompts / 2, (prompts, distillations))).low > 0
    return found / draws


def exactness(
    target: Any,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    *,
    rows: int,
    seed: int,
) -> pd.DataFrame:
    """Sample third tokens twice without and twice with a drafter; return the total variation between and within ways.

    Where both ways have one law, the variation between them is on average the mean of those within.
    """
    records = []
    for number, (place, t) in enumerate(product(range(len(prompts)), temperatures)):
        ways = [None, None, drafter, drafter]
        draws = [
            _third_tokens(target, way, prompts[place], t, rows=rows, seed=seed + 4 * number + i)
            for i, way in enumerate(ways)
        ]
        between = np.mean([_variation(draws[i], draws[j]) for i in (0, 1) for j in (2, 3)])
        records.append((place, t, between, _variation(*draws[:2]), _variation(*draws[2:])))
    return pd.DataFrame(records, columns=["prompt", "temperature", "between", "plain", "speculative"])


def _third_tokens(
    target: Any, drafter: Drafter | None, prompt: Sequence[int], temperature: float, *, rows: int, seed: int
) -> Tensor:
    decoder = SpeculativeDecoder(target, drafter, gamma=2 if drafter else 0, temperature=temperature)
    ids = torch.tensor([list(prompt)] * rows, device=target.device)
    noise = torch.Generator(target.device).manual_seed(seed)
    return decoder.generate(ids, max_new_tokens=3, generator=noise).sequences[:, -1].cpu()


def _variation(a: Tensor, b: Tensor) -> float:
    """Total variation between the shares of tokens in two samples."""
    size = 1 + int(max(a.max(), b.max()))
    shares = [torch.bincount(x, minlength=size).float() / len(x) for x in (a, b)]
    return float((shares[0] - shares[1]).abs().sum() / 2)
