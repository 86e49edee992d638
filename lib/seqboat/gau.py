"""Gated attention unit (GAU, arXiv:2202.10447) over a compressed sequence, as a module that SMA activates.

From the state x: [z, r, v] = SiLU(x W + b), q = γ0 z + β0, k = γ1 z + β1, out = (Attention(q, k, v) ⊙ r) U. One head.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lib.seqboat.attention import FUNCTIONS, RelativeBias, rotate, window_attention
from lib.seqboat.cache import LayerState, Past

POSITIONS = ("relative", "local", "rotary", "none")


class GatedAttentionUnit(nn.Module):
    """A GAU whose window of `window` keys counts the tokens it is given (None: all of them).

    `positions`: `relative` (a learned bias over original distances up to `max_positions`), `local` (over distances in
    the compressed sequence), `rotary` (original positions) or `none`. Raises ValueError for unknown names, for a local
    bias without a window, or an odd key width with rotary positions.
    """

    def __init__(
        self,
        width: int,
        *,
        value_width: int,
        key_width: int,
        window: int | None,
        causal: bool,
        function: str = "softmax",
        positions: str = "relative",
        max_positions: int = 1024,
        hidden_dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check(function, positions, window, key_width)
        self.window, self.causal, self.function, self.positions = window, causal, function, positions
        self.value_width, self.key_width = value_width, key_width
        self.base = nn.Linear(width, key_width + 2 * value_width)
        self.output = nn.Linear(value_width, width)
        self.gamma = nn.Parameter(torch.empty(2, key_width))
        self.beta = nn.Parameter(torch.empty(2, key_width))
        reach = {"relative": max_positions, "local": 1 + (window or 0)}.get(positions)
        self.bias = RelativeBias(reach) if reach else None
        self.hidden_dropout, self.attention_dropout = nn.Dropout(hidden_dropout), nn.Dropout(attention_dropout)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the scales of queries and keys, and zero their offsets."""
        nn.init.trunc_normal_(self.gamma, std=0.02, a=-0.04, b=0.04)
        self.beta.zero_()

    def forward(
        self,
        x: Float[Tensor, "batch kept width"],
        positions: Int[Tensor, "batch kept"],
        mask: Bool[Tensor, "batch kept"],
        layer_state: LayerState | None = None,
    ) -> Float[Tensor, "batch kept width"]:
        """Return the unit's output; with a layer's state it goes on from the past in it, and leaves the new one."""
        shared, gate, values = nn.functional.silu(self.base(x)).split(
            [self.key_width, self.value_width, self.value_width], dim=-1
        )
        queries, keys = self.queries_and_keys(shared, positions)
        seen = Past(keys, self.hidden_dropout(values), positions, mask)
        if layer_state is not None and layer_state.past is not None:
            seen = Past(*(torch.cat(pair, dim=1) for pair in zip(layer_state.past, seen, strict=True)))
        attended = self.attend(queries, seen)
        if layer_state is not None:
            layer_state.past = _last(seen, x.shape[1], mask, self.window)
        return self.output(attended * gate)

    def queries_and_keys(self, shared: Float[Tensor, "batch kept z"], positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries γ0 z + β0 and keys γ1 z + β1, turned by their positions where those are rotary."""
        queries, keys = (shared * self.gamma[i] + self.beta[i] for i in range(2))
        if self.positions == "rotary":
            queries, keys = rotate(queries, positions), rotate(keys, positions)
        return queries, keys

    def attend(self, queries: Float[Tensor, "batch kept z"], seen: Past) -> Float[Tensor, "batch kept h"]:
        """Return each query's weighted sum of the values seen."""
        at = None if self.positions == "local" else seen.positions
        return window_attention(
            queries, seen.keys, seen.values, mask=seen.mask, window=self.window, causal=self.causal,
            function=self.function, bias=self.bias, positions=at,
            dropout=self.attention_dropout if self.attention_dropout.p else None,
        )  # fmt: skip


def _last(seen: Past, new: int, mask: Tensor, window: int | None) -> Past:
    """Return each row's last `window` tokens, at the right end, with empty places before them where it has fewer."""
    if window is None:
        raise ValueError("a layer without a window cannot decode in constant memory: give it a window")
    missing = max(0, window - (seen.keys.shape[1] - new))
    padded = [torch.cat([part.new_zeros(len(part), missing, *part.shape[2:]), part], dim=1) for part in seen]
    start = padded[0].shape[1] - new - window + mask.sum(1, keepdim=True)
    index = start + torch.arange(window, device=mask.device)
    at = {2: index, 3: index.unsqueeze(-1)}
    return Past(*(part.take_along_dim(at[part.ndim], dim=1) for part in padded))


def _check(function: str, positions: str, window: int | None, key_width: int) -> None:
    if function not in FUNCTIONS:
        raise ValueError(f"the attention function must be one of {', '.join(FUNCTIONS)}, got {function!r}")
    if positions not in POSITIONS:
        raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, got {positions!r}")
    if positions == "local" and window is None:
        raise ValueError("a local bias has the size of the window: give a window, or use relative positions")
    if positions == "rotary" and key_width % 2:
        raise ValueError(f"rotary positions turn pairs of channels: the key width must be even, got {key_width}")
