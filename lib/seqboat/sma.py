"""Sparse modular activation (SMA): each token skips the modules it does not need (section 3.1 of arXiv:2306.11197).

A latent configurator decides from a token's state whether a module runs on it (a_t in {0, 1}) and how sure it is
(c_t in [½, 1], the larger of two tempered softmax values). Active tokens are compressed into a shorter sequence, the
module runs on that, and its output is extracted back, times c_t. The decision has no gradient of its own: the router
learns through c_t at active tokens only. Sequences are *always* compressed, so that a row never depends on the others.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Compression:
    """Where the active tokens of a batch are: `index` into each row's tokens, and `mask`, False beyond a row's last.

    `slots` is each token's place in the compressed row; it means nothing where `active` is False.
    """

    active: Bool[Tensor, "batch tokens"]
    slots: Int[Tensor, "batch tokens"]
    index: Int[Tensor, "batch kept"]
    mask: Bool[Tensor, "batch kept"]

    @classmethod
    def of(cls, active: Bool[Tensor, "batch tokens"]) -> "Compression":
        """Return the compression that keeps active tokens in their order; a batch without any keeps an empty slot."""
        running = active.cumsum(1)
        counts = running[:, -1]
        kept = max(1, int(counts.max()))
        slots = (running - 1).clamp(min=0)
        tokens = torch.arange(active.shape[1], device=active.device).expand_as(active)
        index = tokens.new_zeros(len(active), kept + 1)
        index = index.scatter(1, slots.masked_fill(~active, kept), tokens)[:, :kept]  # the last slot takes the skipped
        mask = torch.arange(kept, device=active.device) < counts.unsqueeze(1)
        return cls(active, slots, index.masked_fill(~mask, 0), mask)

    def compress(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch kept width"]:
        """Return the active tokens of each row, in order, then zeros."""
        rows = x.gather(1, self.index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        return rows * self.mask.unsqueeze(-1)

    def extract(self, y: Float[Tensor, "batch kept width"]) -> Float[Tensor, "batch tokens width"]:
        """Return each active token's value at its place, and zeros elsewhere."""
        rows = y.gather(1, self.slots.unsqueeze(-1).expand(-1, -1, y.shape[-1]))
        return rows * self.active.unsqueeze(-1)


@dataclass(frozen=True)
class Activation:
    """A module's decisions on one batch: who is active, how sure the configurator was, and which tokens are real."""

    active: Bool[Tensor, "batch tokens"]
    confidence: Float[Tensor, "batch tokens"]
    real: Bool[Tensor, "batch tokens"]

    @property
    def rate(self) -> Float[Tensor, "batch"]:
        """Share of each row's real tokens on which the module ran."""
        return self.active.sum(1) / self.real.sum(1).clamp(min=1)


class LatentConfigurator(nn.Module):
    """Decides, for each token and each of `modules` modules, whether to run it, by a tempered softmax over (skip, run).

    The temperature is e^t with learnable t, at first `temperature_scale`·√width: half-hearted decisions that sharpen by
    learning. `activation_bias` is added to the score of skipping, so a larger one is sparser; it may be changed at any
    time. `always_active` runs every module everywhere with confidence 1. Deterministic, the same in training and
    evaluation. Raises ValueError for a scale that is not positive.
    """

    def __init__(
        self,
        width: int,
        *,
        modules: int = 1,
        temperature_scale: float = 1.0,
        activation_bias: float = 0.0,
        always_active: bool = False,
    ) -> None:
        super().__init__()
        if temperature_scale <= 0:
            raise ValueError(f"temperature_scale must be positive, got {temperature_scale}")
        self.scores = nn.Linear(width, 2 * modules)
        self.initial_temperature = temperature_scale * math.sqrt(width)
        self.log_temperature = nn.Parameter(torch.empty(()))
        self.activation_bias, self.always_active = activation_bias, always_active
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Put the temperature to its start; the scores draw their own weights."""
        self.log_temperature.fill_(math.log(self.initial_temperature))

    @property
    def temperature(self) -> float:
        """Temperature τ now."""
        return float(self.log_temperature.detach().exp())

    def forward(
        self, state: Float[Tensor, "batch tokens width"], real: Bool[Tensor, "batch tokens"] | None = None
    ) -> list[Activation]:
        """Return each module's decisions; padding (`real` False) is never active."""
        if real is None:
            real = torch.ones(state.shape[:2], dtype=torch.bool, device=state.device)
        scores = self.scores(state).float().unflatten(-1, (-1, 2))  # [batch, tokens, modules, (skip, run)]
        if self.always_active:
            return [Activation(real, torch.ones_like(scores[:, :, 0, 0]), real) for _ in range(scores.shape[2])]
        bias = scores.new_tensor([self.activation_bias, 0.0])
        probs = ((scores + bias) / self.log_temperature.float().exp()).softmax(-1)
        active = (probs[..., 1] > probs[..., 0]) & real.unsqueeze(-1)
        confidence = probs.amax(-1)
        return [Activation(active[..., i], confidence[..., i], real) for i in range(scores.shape[2])]


class SparseModularActivation(nn.Module):
    """Any modules, each run on the tokens that activate it only: y_t = Σ_i a_{t,i} c_{t,i} f_i(active tokens)_t.

    A module is called as `module(values, positions, mask)` with compressed values [batch, kept, width], their
    original positions and a mask [batch, kept], and returns values of the same shape. Raises ValueError without any.
    """

    def __init__(
        self,
        width: int,
        modules: Sequence[Callable[..., Any]],
        *,
        temperature_scale: float = 1.0,
        activation_bias: float = 0.0,
        always_active: bool = False,
    ) -> None:
        super().__init__()
        if not modules:
            raise ValueError("sparse modular activation needs at least one module")
        self.experts = nn.ModuleList(modules)  # pyright: ignore[reportArgumentType]
        self.configurator = LatentConfigurator(
            width,
            modules=len(modules),
            temperature_scale=temperature_scale,
            activation_bias=activation_bias,
            always_active=always_active,
        )

    def forward(
        self,
        state: Float[Tensor, "batch tokens width"],
        real: Bool[Tensor, "batch tokens"] | None = None,
        positions: Int[Tensor, "batch tokens"] | None = None,
        **options: Any,
    ) -> tuple[Float[Tensor, "batch tokens width"], list[Activation]]:
        """Return the modules' summed outputs and their activations; `options` are handed to each module.

        A token's position is its index where none is given.
        """
        if positions is None:
            positions = torch.arange(state.shape[1], device=state.device).expand(state.shape[:2])
        activations = self.configurator(state, real)
        total = torch.zeros_like(state)
        for module, activation in zip(self.experts, activations, strict=True):
            total = total + self._run(module, activation, state, positions, options)
        return total, activations

    @staticmethod
    def _run(module: nn.Module, activation: Activation, state: Tensor, positions: Tensor, options: Any) -> Tensor:
        packed = Compression.of(activation.active)
        output = module(packed.compress(state), positions.gather(1, packed.index), packed.mask, **options)
        weight = (activation.confidence * activation.active).to(output.dtype)
        return packed.extract(output) * weight.unsqueeze(-1)
