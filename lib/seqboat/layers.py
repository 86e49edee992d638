"""The layers of a stack: SeqBoat's, and those it is compared with, behind one call.

SeqBoat (section 3.2 of arXiv:2306.11197): H = SiLU(EMA(x)); out = SiLU(H W + b + SMA(H) + x), where SMA activates a
gated attention unit. `mega` is MEGA's gated layer (Eq. 6-15 of arXiv:2209.10655), with attention inside chunks of w
tokens or over everything; `transformer` is a pre-norm block with rotary attention by torch's SDPA.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention, silu

from lib.seqboat.cache import LayerState
from lib.seqboat.ema import MultiDimensionalEMA
from lib.seqboat.gau import GatedAttentionUnit, PastBox
from lib.seqboat.local_attention import window_attention
from lib.seqboat.norms import Norm
from lib.seqboat.positions import RelativeBias, rotate
from lib.seqboat.sma import Activation, SparseModularActivation

if TYPE_CHECKING:
    from lib.seqboat.configuration import SeqBoatConfig

LayerOutput = tuple[Tensor, list[Activation]]


class SeqBoatLayer(nn.Module):
    """EMA, then a gated attention unit on the tokens that activate it, then a gated residual; no feed-forward layer."""

    def __init__(self, config: "SeqBoatConfig") -> None:
        super().__init__()
        self.prenorm, self.causal = config.prenorm, config.is_decoder
        self.norm = Norm(config.norm, config.hidden_size)
        self.ema = _ema(config)
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
        if state is None:
            attended, activations = self.sma(hidden, real, positions)
        else:
            box = PastBox(state.past)
            attended, activations = self.sma(hidden, real, positions, box=box)
            state.past = box.past
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


class MegaLayer(nn.Module):
    """MEGA's layer with one attention head, always active, in chunks of `window` tokens (None: over everything)."""

    def __init__(self, config: "SeqBoatConfig") -> None:
        super().__init__()
        self.config = config
        width, h, z = config.hidden_size, config.value_size, config.key_size
        self.norm = Norm(config.norm, width)
        self.ema = _ema(config)
        self.values = nn.Linear(width, h)
        self.base = nn.Linear(width, z + h + 2 * width)  # shared z, gate γ of the attention, update gate φ, candidate
        self.output = nn.Linear(h, width, bias=False)
        self.gamma, self.beta = nn.Parameter(torch.empty(2, z)), nn.Parameter(torch.empty(2, z))
        self.bias = RelativeBias(config.window or config.max_position_embeddings)
        self.dropout = nn.Dropout(config.dropout)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the scales of queries and keys, and zero their offsets."""
        nn.init.trunc_normal_(self.gamma, std=0.02, a=-0.04, b=0.04)
        self.beta.zero_()

    def forward(self, x: Tensor, real: Tensor, positions: Tensor, state: LayerState | None = None) -> LayerOutput:
        """Return the layer's output; there is no state to go on from, and nothing to activate."""
        residual, x = x, (self.norm(x, real) if self.config.prenorm else x)
        hidden = self.dropout(self.ema(x, real))
        z, h, width = self.config.key_size, self.config.value_size, self.config.hidden_size
        shared, gate, update, candidate = self.base(hidden).split([z, h, width, width], dim=-1)
        queries, keys = (silu(shared) * self.gamma[i] + self.beta[i] for i in range(2))
        attended = self._chunked(queries, keys, silu(self.values(x)), real)
        candidate = silu(candidate + self.output(silu(gate) * attended))
        out = torch.lerp(residual, self.dropout(candidate), torch.sigmoid(update))
        return (out if self.config.prenorm else self.norm(out, real)), []

    def _chunked(self, queries: Tensor, keys: Tensor, values: Tensor, real: Tensor) -> Tensor:
        batch, tokens = real.shape
        chunk = min(self.config.window or tokens, tokens)
        added = -tokens % chunk
        parts = [pad(p, (0, 0, 0, added)).unflatten(1, (-1, chunk)).flatten(0, 1) for p in (queries, keys, values)]
        mask = pad(real, (0, added)).unflatten(1, (-1, chunk)).flatten(0, 1)
        attended = window_attention(
            *parts, mask=mask, window=None, causal=self.config.is_decoder, bias=self.bias,
            function=self.config.attention_function,
        )  # fmt: skip
        return attended.unflatten(0, (batch, -1)).flatten(1, 2)[:, :tokens]


class TransformerLayer(nn.Module):
    """Pre-norm attention (heads of `key_size`, rotary) and a GELU feed-forward layer of `feed_forward_size`."""

    def __init__(self, config: "SeqBoatConfig") -> None:
        super().__init__()
        width = config.hidden_size
        if width % config.key_size:
            raise ValueError(f"a Transformer's width {width} must be a multiple of its head size {config.key_size}")
        self.heads, self.causal = width // config.key_size, config.is_decoder
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.projections, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner, self.outer = nn.Linear(width, config.feed_forward_size), nn.Linear(config.feed_forward_size, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, real: Tensor, positions: Tensor, state: LayerState | None = None) -> LayerOutput:
        """Return the layer's output; there is no state to go on from, and nothing to activate."""
        queries, keys, values = self.projections(self.attention_norm(x)).chunk(3, dim=-1)
        queries, keys, values = (
            p.unflatten(-1, (self.heads, -1)).transpose(1, 2).flatten(0, 1) for p in (queries, keys, values)
        )
        at = positions.repeat_interleave(self.heads, 0)
        queries, keys, values = (
            p.unflatten(0, (-1, self.heads)) for p in (rotate(queries, at), rotate(keys, at), values)
        )
        allowed = None if bool(real.all()) else self._allowed(real)
        mixed = scaled_dot_product_attention(
            queries, keys, values, attn_mask=allowed, is_causal=self.causal and allowed is None
        )
        x = x + self.dropout(self.output(mixed.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.outer(nn.functional.gelu(self.inner(self.feed_norm(x))))), []

    def _allowed(self, real: Tensor) -> Tensor:
        """Keys that each query sees: real ones, and itself, so that padding has something to look at."""
        itself = torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
        seen = real[:, None, None, :].expand(-1, 1, real.shape[1], -1)
        return (seen.tril() if self.causal else seen) | itself


def _ema(config: "SeqBoatConfig") -> MultiDimensionalEMA:
    return MultiDimensionalEMA(
        config.hidden_size,
        dimension=config.ema_size,
        causal=config.is_decoder,
        method=config.ema_method,
        truncation=config.truncation,
    )


LAYERS = {"seqboat": SeqBoatLayer, "mega": MegaLayer, "transformer": TransformerLayer}
