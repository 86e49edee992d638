"""`compose`: several LoRAs in one image with any diffusers pipeline, by wrapping its denoiser (arXiv:2402.16843).

Merge: W' = W + Σ w_i B_i A_i. Switch: W'_t = W + w_i B_i A_i with i = i(t). Composite: the mean of the predictions
under each. `weights` are the w_i on the LoRA weights in all three (the paper has 0.8); `shares` weigh composite's mean.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lib import TenfoldError
from lib.multilora.composite import Batched, Composite, denoisers_of
from lib.multilora.layers import AdapterLayers, replaced
from lib.multilora.schedule import Factor, Schedule, checked_schedule, factor_at, turn

METHODS = ("merge", "switch", "composite")


@dataclass(frozen=True)
class Pass:
    """One call of a denoiser: its run and step, adapters with their weights, and whether copies were batched."""

    run: int
    step: int
    weights: dict[str, float]
    batched: bool = False


@dataclass
class Composition:
    """A composition in force; `passes` tells what each call of the denoiser ran under."""

    weights: dict[str, float]
    method: str
    tau: int
    convention: str
    schedule: dict[str, Factor]
    shares: dict[str, float]
    passes: list[Pass] = field(default_factory=list)

    def adapters_at(self, step: int, steps: int) -> dict[str, float]:
        """Return the adapters in force at a step, with their weights."""
        names = list(self.weights)
        if self.method == "switch":
            names = [names[turn(step, k=len(names), tau=self.tau, convention=self.convention)]]
        factor = {n: factor_at(self.schedule.get(n), step=step, steps=steps) for n in names}
        return {name: self.weights[name] * factor[name] for name in names}


class StepClock:
    """Counts `scheduler.step` calls since the last `set_timesteps`; `step` is 0-based, `steps` the run's length.

    A pipeline calls `set_timesteps` once a run and `step` once at the end of each turn of its loop, however often it
    calls the denoiser in between (true guidance of Flux, skipped layers of SD3, the second half of a Heun step).
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self.step = 0
        self.runs = 0

    @property
    def steps(self) -> int:
        """Steps of the run as the scheduler has them."""
        timesteps = getattr(self._scheduler, "timesteps", None)
        return 0 if timesteps is None else len(timesteps)

    def _advance(self) -> None:
        self.step += 1

    def _restart(self) -> None:
        self.step = 0
        self.runs += 1


@contextmanager
def ticking(scheduler: Any) -> Iterator[StepClock]:
    """Count the steps of a scheduler while the block lasts; the scheduler's own methods come back at its end."""
    clock = StepClock(scheduler)
    with replaced(scheduler, "step", _then(scheduler.step, clock._advance)):
        with replaced(scheduler, "set_timesteps", _then(scheduler.set_timesteps, clock._restart)):
            yield clock


def _then(method: Any, afterwards: Any) -> Any:
    @functools.wraps(method)  # pipelines inspect the signature to know which arguments a scheduler takes
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        afterwards()
        return result

    return wrapped


@contextmanager
def compose(
    pipe: Any, weights: Mapping[str, float], method: str = "merge", *, tau: int = 5, order: Sequence[str] | None = None,
    schedule: Schedule | None = None, shares: Mapping[str, float] | None = None, batched: Batched = "auto",
    convention: str = "paper",
) -> Iterator[Composition]:  # fmt: skip
    """Compose loaded LoRAs in every call of a diffusers pipeline within the block; everything is restored at its end.

    `weights`: adapter name to LoRA weight, in the order of turns unless `order` gives another. `tau`: steps of a turn
    of switch, by the paper's formula or the released `callback`'s. `schedule`: factors on a weight by step (a list) or
    by progress in [0, 1] (a function). `shares`: relative weights of composite's mean. `batched`: composite in one pass
    over k copies (True), in k passes (False), or in one pass where that is known to be right and fits ("auto"); all
    agree to rounding.

    Prompts are encoded once, as in the paper's pipeline: LoRAs of a text encoder are all active for merge and
    composite, and only the first one's for switch. Raises ValueError for an unknown adapter or method, an empty set,
    τ < 1, an order that is no permutation and `batched=True` where it is not known to be right; TypeError for what is
    no pipeline; TenfoldError for fused weights.
    """
    denoisers = {name: (module, AdapterLayers(module)) for name, module in denoisers_of(pipe).items()}
    encoders = [AdapterLayers(m) for n, m in pipe.components.items() if "encoder" in n and isinstance(m, nn.Module)]
    parts = [layers for _, layers in denoisers.values()] + encoders
    composition = _checked(parts, weights, method, tau, order, schedule, shares, convention)
    with ExitStack() as stack:
        for layers in parts:
            stack.enter_context(layers.restored())
        clock = stack.enter_context(ticking(pipe.scheduler))
        names = list(composition.weights)
        for layers in encoders:
            layers.set({name: composition.weights[name] for name in (names[:1] if method == "switch" else names)})
        for module, layers in denoisers.values():
            composite = Composite(module, layers, names, batched) if method == "composite" else None
            if composite:
                composite.enter(stack)
            forward = _composed(module.forward, layers, composition, clock, composite)
            stack.enter_context(replaced(module, "forward", forward))
        yield composition


def _composed(
    forward: Any, layers: AdapterLayers, composition: Composition, clock: StepClock, composite: Composite | None
) -> Any:
    """Forward pass of a denoiser under the adapters of the clock's step."""

    def composed(*args: Any, **kwargs: Any) -> Any:
        now = composition.adapters_at(clock.step, clock.steps)
        if composite:
            output, batched = composite(forward, args, kwargs, now, composition.shares)
        else:
            layers.set(now)  # at each pass: a pipeline's own LoRA scale of 0 would reset them
            output, batched = forward(*args, **kwargs), False
        composition.passes.append(Pass(clock.runs, clock.step, now, batched))
        return output

    return composed


def _checked(
    parts: list[AdapterLayers], weights: Mapping[str, float], method: str, tau: int, order: Sequence[str] | None,
    schedule: Schedule | None, shares: Mapping[str, float] | None, convention: str,
) -> Composition:  # fmt: skip
    """Return the composition, every argument checked against the adapters that are loaded."""
    if method not in METHODS:
        raise ValueError(f"{method!r} is no method of composition: use one of {', '.join(METHODS)}.")
    if not weights:
        raise ValueError("there is nothing to compose: give at least one adapter with its weight.")
    loaded = list(dict.fromkeys(name for layers in parts for name in layers.names))
    unknown = [name for name in weights if name not in loaded]
    if unknown:
        raise ValueError(
            f"no LoRA called {unknown[0]!r} is loaded ({len(weights)} asked for, {len(loaded)} loaded: "
            f"{', '.join(loaded) or 'none'}): load it with adapter_name={unknown[0]!r} first."
        )
    if any(layers.fused for layers in parts):
        raise TenfoldError("LoRA weights are fused into the model: call pipe.unfuse_lora() before composing.")
    order = list(weights) if order is None else list(order)
    if sorted(order) != sorted(weights):
        raise ValueError(f"order must name each of {list(weights)} once, not {order}.")
    turn(0, k=1, tau=tau, convention=convention)
    return Composition(
        weights={name: float(weights[name]) for name in order},
        method=method,
        tau=tau,
        convention=convention,
        schedule=checked_schedule(schedule, order),
        shares=_normalised(shares, order),
    )


def _normalised(shares: Mapping[str, float] | None, names: list[str]) -> dict[str, float]:
    """Return the shares of composite's mean, adding up to one.

    # Deviation: the paper has (1/k) Σ w_i e_i with all w_i = 1; unequal w_i would change the size of the noise.
    """
    raw = {name: 1.0 for name in names} if shares is None else dict(shares)
    if sorted(raw) != sorted(names) or min(raw.values()) < 0 or sum(raw.values()) <= 0:
        raise ValueError(f"shares must give each of {names} a number ≥ 0, not all zero.")
    total = sum(raw.values())
    return {name: raw[name] / total for name in names}
