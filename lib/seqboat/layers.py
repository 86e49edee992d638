"""The layer of a stack, and the normalisations over [batch, tokens, width] that it may have; both know padding.

SeqBoat (section 3.2 of arXiv:2306.11197): H = SiLU(EMA(x)); out = SiLU(H W + b + SMA(H) + x), where SMA activates a
gated attention unit.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import silu

from lib.seqboat.cache import LayerState
from lib.seqboat.ema import MultiDimensionalEMA
from lib.seqboat.gau import GatedAttentionUnit
from lib.seqboat.sma import Activation, SparseModularActivation

if TYPE_CHECKING:
    from lib.seqboat.configuration import SeqBoatConfig

LayerOutput = tuple[Tensor, list[Activation]]
NORMS = ("layer", "scale", "batch")


class ScaleNorm(nn.Module):
    """x / rms(x) times one learned scalar."""

    def __init__(self, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(()))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Put the scale to 1."""
        self.scale.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised tensor."""
        mean_square = x.float().square().mean(-1, keepdim=True)
        return (self.scale * x.float() * torch.rsqrt(mean_square + self.eps)).to(x.dtype)


class Norm(nn.Module):
    """One of the three by name; batch norm takes its statistics from real tokens only. Raises ValueError if unknown."""

    def __init__(self, kind: str, width: int, *, affine: bool = True) -> None:
        super().__init__()
        if kind not in NORMS:
            raise ValueError(f"the norm must be one of {', '.join(NORMS)}, got {kind!r}")
        self.kind = kind
        if kind == "scale":
            self.norm: nn.Module = ScaleNorm()
        elif kind == "layer":
            self.norm = nn.LayerNorm(width, elementwise_affine=affine)
        else:
            self.norm = nn.BatchNorm1d(width, affine=affine)

    def forward(
        self, x: Float[Tensor, "batch tokens width"], real: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        """Return the normalised states; padding is left zero by batch norm."""
        if self.kind != "batch":
            return self.norm(x)
        if real is None:
            return self.norm(x.flatten(0, 1)).view_as(x)
        return torch.zeros_like(x).masked_scatter(real.unsqueeze(-1), self.norm(x[real]))


class SeqBoatLayer(nn.Module):
    """EMA, then a gated attention unit on the tokens that activate it, then a gated residual; no feed-forward layer."""

    def __init__(self, config: "SeqBoatConfig") -> None:
        super().__init__()
        self.prenorm, self.causal = config.prenorm, config.is_decoder
        self.norm = Norm(config.norm, config.hidden_size)
        self.ema = moving_average(config)
        self.linear = nn.Linear(config.hidden_size, config.hidden_size)
        unit = GatedAttentionUnit(
            config.hidden_size,
            value_width=config.value_size,
            key_width=config.key_size,
            window=config.window,
            causal=config.is_decoder,
            function=config.attention_function,
            positions=config.positions,
            max_positions=config.max_position_embeddings,
            hidden_dropout=config.hidden_dropout,
            attention_dropout=config.attention_dropout,
        )
        self.sma = SparseModularActivation(
            config.hidden_size,
            [unit],
            temperature_scale=config.temperature_scale,
            activation_bias=config.activation_bias,
            always_active=config.always_active,
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        real: Bool[Tensor, "batch tokens"],
        positions: Int[Tensor, "batch tokens"],
        state: LayerState | None = None,
    ) -> LayerOutput:
        """Return the layer's output and its activations; a state is gone on from and updated in place."""
        hidden = self.state_of(x, real, state)
        attended, activations = self.sma(hidden, real, positions, layer_state=state)
        linear = self.linear(hidden)
        if self.causal:
            out = silu(self.dropout(linear + attended) + x)
        else:
            out = silu(linear + self.dropout(attended) + x)
        return (out if self.prenorm else self.norm(out, real)), activations

    def state_of(self, x: Tensor, real: Tensor, state: LayerState | None = None) -> Tensor:
        """Return H, the state from which the configurator decides."""
        x = self.norm(x, real) if self.prenorm else x
        if state is None:
            averaged = self.ema(x, real)
        else:
            averaged, state.ema = self.ema.continue_from(x, state.ema, real)
        return self.dropout(silu(averaged))


def moving_average(config: "SeqBoatConfig") -> MultiDimensionalEMA:
    """Return the EMA that a configuration describes."""
    return MultiDimensionalEMA(
        config.hidden_size,
        dimension=config.ema_size,
        causal=config.is_decoder,
        method=config.ema_method,
        truncation=config.truncation,
    )


# By name; a study adds what it compares with (`lib.seqboat.study.peers`), called as a SeqBoat layer is.
LAYERS: dict[str, type[nn.Module]] = {"seqboat": SeqBoatLayer}
