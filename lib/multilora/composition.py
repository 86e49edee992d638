"""`compose`: several LoRAs in one image with any diffusers pipeline, by the steps of its scheduler (arXiv:2402.16843).

Merge: W' = W + Σ w_i B_i A_i. Switch: W'_t = W + w_i B_i A_i with i = i(t). Composite: the mean of the predictions
under each. `weights` are the w_i on the LoRA weights in all three (the paper has 0.8); `shares` weigh composite's mean.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lib import TenfoldError
from lib.multilora.composite import Batched, Prediction, denoisers_of
from lib.multilora.layers import AdapterLayers, Blocks, unchanging
from lib.multilora.regions import Shares
from lib.multilora.schedule import Factor, Schedule, StepClock, checked_schedule, factor_at, turn

METHODS = ("merge", "switch", "composite")


@dataclass(frozen=True)
class Step:
    """A step that was taken: its run and number, its adapters and weights, whether copies were one pass."""

    run: int
    step: int
    weights: dict[str, float]
    batched: bool = False


@dataclass
class Composition:
    """A composition in force; `taken` tells under what each denoising step was taken."""

    weights: dict[str, float]
    method: str
    tau: int
    convention: str
    schedule: dict[str, Factor]
    taken: list[Step] = field(default_factory=list)

    def adapters_at(self, step: int, steps: int) -> dict[str, float]:
        """Return the adapters in force at a step, with their weights."""
        names = list(self.weights)
        if self.method == "switch":
            names = [names[turn(step, k=len(names), tau=self.tau, convention=self.convention)]]
        factor = {n: factor_at(self.schedule.get(n), step=step, steps=steps) for n in names}
        return {name: self.weights[name] * factor[name] for name in names}


@contextmanager
def compose(
    pipe: Any, weights: Mapping[str, float], method: str = "merge", *, tau: int = 5, order: Sequence[str] | None = None,
    schedule: Schedule | None = None, shares: Mapping[str, float] | None = None, blocks: Blocks | None = None,
    masks: Mapping[str, Any] | None = None, batched: Batched = "auto", convention: str = "paper",
) -> Iterator[Composition]:  # fmt: skip
    """Compose loaded LoRAs in every call of a diffusers pipeline within the block; everything is restored at its end.

    `weights`: adapter name to LoRA weight, in the order of turns unless `order` gives another. `tau`: steps of a turn
    of switch, by the paper's formula or the released `callback`'s. `schedule`: factors on a weight by step (a list) or
    by progress in [0, 1] (a function). `shares`: relative weights of composite's mean. `blocks`: factors on an
    adapter's weight in parts of the denoiser, such as {"hero": {"down_blocks": 0.5, "up_blocks.1": 0.0}}; the longest
    name that fits counts. `masks`: where an adapter acts (composite and switch), as a picture of any size with values
    from 0 to 1 (`region` draws rectangles); places that none covers are the base model's. `batched`: composite in one
    pass over k copies (True), in k passes (False), or in one pass where that is known to be right and fits ("auto");
    all agree to rounding.

    The scheduler's steps choose the adapters, between the denoiser's calls: it may be compiled, offloaded, cast or
    quantised. Compile it before the block; each turn of switch is a graph of its own.

    Prompts are encoded once, as in the paper's pipeline: LoRAs of a text encoder are all active for merge and
    composite, and only the first one's for switch. Raises ValueError for an unknown adapter, method or block, an empty
    set, τ < 1, an order that is no permutation, masks for merge, and `batched=True` where it is not known to be right;
    TypeError for what is no pipeline, or weights without names; TenfoldError for fused weights, and where adapters or
    the denoiser are changed inside the block.
    """
    denoisers = denoisers_of(pipe)
    parts = {name: AdapterLayers(module, blocks) for name, module in denoisers.items()}
    encoders = [AdapterLayers(m) for n, m in pipe.components.items() if "encoder" in n and isinstance(m, nn.Module)]
    composition = _checked([*parts.values(), *encoders], weights, method, tau, order, schedule, convention)
    for name, factors in (blocks or {}).items():
        if name not in composition.weights:
            raise ValueError(f"blocks name {name!r}, which has no weight here: {list(composition.weights)} do.")
        if missed := set(factors).difference(*(layers.met[name] for layers in parts.values())):
            raise ValueError(f"no layer of {name!r} lies in {min(missed)!r}: give the beginning of layers' names.")
    if any(getattr(module, "fused_projections", False) for model in denoisers.values() for module in model.modules()):
        raise TenfoldError("fused projections leave LoRAs out: call unfuse_qkv_projections() before composing.")
    spread = Shares(list(composition.weights), shares if method == "composite" else None, masks)
    if masks and method == "merge":
        raise ValueError("merge changes the weights for all places at once: masks need 'composite' or 'switch'.")
    encoded = dict(list(composition.weights.items())[: 1 if method == "switch" else None])
    predictions: list[Prediction] = []

    def now() -> dict[str, float]:
        return composition.adapters_at(clock.step, clock.steps)

    def activate() -> None:
        for layers in parts.values():
            layers.set(now())
        for layers in encoders:  # a pipeline's own LoRA scale of 0 resets the weights: once more for its next call
            layers.set(encoded)

    def begin() -> None:
        if changed := [name for name, module in denoisers.items() if getattr(pipe, name) is not module]:
            raise TenfoldError(f"pipe.{changed[0]} was replaced inside compose: load or compile it before the block.")
        for prediction in predictions:
            prediction.begin()
        activate()

    def move() -> None:
        before = composition.adapters_at(clock.step - 1, clock.steps)
        batched = any(prediction.was_batched for prediction in predictions)
        composition.taken.append(Step(clock.runs, clock.step - 1, before, batched))
        activate()

    with ExitStack() as stack:
        for layers in (*parts.values(), *encoders):
            stack.enter_context(layers.restored())
        stack.enter_context(unchanging(pipe, *denoisers.values()))
        clock = StepClock(pipe, begin, move, stack)
        activate()
        if method == "composite" or masks:
            predictions += [Prediction(m, parts[name], batched, now, spread) for name, m in denoisers.items()]
            for prediction in predictions:
                stack.enter_context(prediction.installed())
        yield composition
        clock.check()


def _checked(
    parts: list[AdapterLayers], weights: Mapping[str, float], method: str, tau: int, order: Sequence[str] | None,
    schedule: Schedule | None, convention: str,
) -> Composition:  # fmt: skip
    """Return the composition, every argument checked against the adapters that are loaded."""
    if method not in METHODS:
        raise ValueError(f"{method!r} is no method of composition: use one of {', '.join(METHODS)}.")
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights are adapter names with their LoRA weights, such as {{'hero': 1.0}}, not {weights!r}.")
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
    ordered = {name: float(weights[name]) for name in order}
    return Composition(ordered, method, tau, convention, checked_schedule(schedule, order))
