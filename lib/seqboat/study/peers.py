"""What SeqBoat is compared with: other layers in the same stack, widened until the numbers of parameters agree.

`mega` is MEGA's gated layer (Eq. 6-15 of arXiv:2209.10655, with a SiLU after the moving average as in its code), with
attention in chunks of w tokens or over everything; `transformer` is a pre-norm block with rotary attention by torch's
SDPA. Importing this module makes both known to `SeqBoatConfig(layer=...)`.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention, silu

from lib.seqboat.attention import RelativeBias, rotate, window_attention
from lib.seqboat.cache import LayerState
from lib.seqboat.configuration import SeqBoatConfig
from lib.seqboat.layers import LAYERS, LayerOutput, Norm, moving_average
from lib.seqboat.modeling import SeqBoatModel

HEAD = 16  # greatest head size of a Transformer that is narrower than 64


class MegaLayer(nn.Module):
    """MEGA's layer with one attention head, always active, in chunks of `window` tokens (None: over everything)."""

    def __init__(self, config: SeqBoatConfig) -> None:
        super().__init__()
        self.config = config
        width, h, z = config.hidden_size, config.value_size, config.key_size
        self.norm = Norm(config.norm, width)
        self.ema = moving_average(config)
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
        """Return the layer's output; there is no state to go on from, and nothing to activate.

        Raises ValueError for a text longer than the bias over all of it reaches.
        """
        if self.config.window is None and x.shape[1] > self.bias.reach:
            raise ValueError(f"{x.shape[1]} tokens are more than max_position_embeddings = {self.bias.reach}: raise it")
        residual, x = x, (self.norm(x, real) if self.config.prenorm else x)
        hidden = self.dropout(silu(self.ema(x, real)))
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

    def __init__(self, config: SeqBoatConfig) -> None:
        super().__init__()
        width = config.hidden_size
        if width % config.key_size or not config.prenorm:
            raise ValueError(
                f"a Transformer needs prenorm=True, and a width {width} of whole heads of key_size={config.key_size}"
            )
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


LAYERS |= {"mega": MegaLayer, "transformer": TransformerLayer}


def parameter_count(config: SeqBoatConfig) -> int:
    """Parameters of a stack, counted on the meta device."""
    with torch.device("meta"):
        return sum(p.numel() for p in SeqBoatModel(config).parameters())


def matched(config: SeqBoatConfig, kind: str) -> SeqBoatConfig:
    """Return a baseline's configuration with the size of a SeqBoat's, as near as whole widths allow.

    `kind`: `always` (the same model, every token active), `mega` (chunks of the window's length; its value width is
    fitted) or `transformer` (its feed-forward width is fitted). Raises ValueError for another kind.
    """
    changed = copy.deepcopy(config)
    if kind == "always":
        changed.always_active = True
        return changed
    if kind not in ("mega", "transformer"):
        raise ValueError(f"a baseline is always, mega or transformer, got {kind!r}")
    changed.layer = kind
    field = "value_size" if kind == "mega" else "feed_forward_size"
    if kind == "transformer":
        changed.key_size = 64 if config.hidden_size % 64 == 0 else HEAD
        changed.norm, changed.prenorm = "layer", True
    sizes = []
    for width in (8, 16):  # parameters are linear in the width
        setattr(changed, field, width)
        sizes.append(parameter_count(changed))
    each = (sizes[1] - sizes[0]) / 8
    setattr(changed, field, max(8, round(8 + (parameter_count(config) - sizes[0]) / each)))
    return changed
