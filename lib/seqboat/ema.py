"""Multi-dimensional damped exponential moving average (EMA): the always-on state-space model of every layer.

Eq. 1-2 of MEGA (arXiv:2209.10655), which SeqBoat (arXiv:2306.11197, section 3.2) takes over. Each channel has N damped
averages: h_t = q h_{t-1} + p β x_t, y_t = Σ_n γ N^{-½} h_t + ω x_t, with p = σ(δ) and q = 1 - p σ(α). There are three
equal ways to compute it: a convolution by FFT (O(L log L)), a scan over chunks (O(L), from and to a state) and the
recurrence step by step (O(1) a token). All work in float32.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

CHUNK = 64  # tokens that a scan handles by one matrix product


def fft_convolve(x: Float[Tensor, "batch tokens width"], kernel: Float[Tensor, "width lags"]) -> Tensor:
    """Causal convolution y_t = Σ_l kernel_l x_{t-l} by FFT, of the shape of `x`; O(L log L)."""
    tokens = x.shape[1]
    kernel = kernel[:, :tokens]
    size = tokens + kernel.shape[1]
    spectrum = torch.fft.rfft(x.transpose(1, 2), n=size) * torch.fft.rfft(kernel, n=size)
    return torch.fft.irfft(spectrum, n=size)[..., :tokens].transpose(1, 2)


class DampedEMA(nn.Module):
    """One direction of the EMA over [batch, tokens, width], without the residual ω x.

    `dimension` is N; the state is [batch, width, N]. Initial values are MEGA's.
    """

    def __init__(self, width: int, *, dimension: int = 16) -> None:
        super().__init__()
        self.width, self.dimension = width, dimension
        self.delta, self.alpha, self.beta, self.gamma = (nn.Parameter(torch.empty(width, dimension)) for _ in range(4))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw initial values: truncated normals, and β with alternating signs over the N averages."""
        for weight, deviation in ((self.delta, 0.2), (self.alpha, 0.2), (self.gamma, 1.0)):
            nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)
        signs = 1.0 - 2.0 * (torch.arange(self.dimension, device=self.beta.device) % 2)
        nn.init.normal_(self.beta, std=0.02).add_(signs)

    def coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return p β (what enters a state), log q (its decay) and γ N^{-½} (how it is read): [width, N], float32."""
        p = torch.sigmoid(self.delta.float())
        log_q = torch.log1p(-p * torch.sigmoid(self.alpha.float()))
        return p * self.beta.float(), log_q, self.gamma.float() / math.sqrt(self.dimension)

    def kernel(self, lags: int) -> Float[Tensor, "width lags"]:
        """Return the impulse response K_l = Σ_n p β γ N^{-½} q^l for l = 0..lags-1."""
        enter, log_q, read = self.coefficients()
        steps = torch.arange(lags, device=log_q.device, dtype=log_q.dtype)
        return torch.einsum("dn,dnl->dl", enter * read, torch.exp(log_q.unsqueeze(-1) * steps))

    def convolve(self, x: Float[Tensor, "batch tokens width"], *, truncation: int | None = None) -> Tensor:
        """Return y by FFT; `truncation` drops the kernel after so many lags."""
        lags = x.shape[1] if truncation is None else min(truncation, x.shape[1])
        return fft_convolve(x.float(), self.kernel(lags))

    def scan(
        self, x: Float[Tensor, "batch tokens width"], state: Tensor | None = None, *, chunk: int = CHUNK
    ) -> tuple[Tensor, Float[Tensor, "batch width n"]]:
        """Return y and the final state by a scan over chunks: products inside, a recurrence between them."""
        rest = x.shape[1] % chunk
        pieces = []
        for piece in (x[:, : x.shape[1] - rest], x[:, x.shape[1] - rest :]):
            if piece.shape[1]:
                y, state = self._scan_whole(piece.float(), state, min(chunk, piece.shape[1]))
                pieces.append(y)
        return torch.cat(pieces, dim=1), state  # pyright: ignore[reportReturnType]

    def _scan_whole(self, x: Tensor, state: Tensor | None, chunk: int) -> tuple[Tensor, Tensor]:
        """Scan a number of tokens that `chunk` divides."""
        batch, tokens, width = x.shape
        rows = x.permute(2, 0, 1).reshape(width, -1, chunk)  # [width, batch * chunks, chunk]
        enter, log_q, read = self.coefficients()
        lags = torch.arange(chunk, device=x.device, dtype=log_q.dtype)
        powers = torch.exp(log_q.unsqueeze(-1) * lags)  # q^l: [width, N, chunk]
        within = _toeplitz(torch.einsum("dn,dnl->dl", enter * read, powers))
        entering = (enter.unsqueeze(-1) * powers).flip(-1).transpose(1, 2)  # a token's share in its chunk's last state
        inside, summed = (rows @ torch.cat([within, entering], dim=-1)).split([chunk, self.dimension], dim=-1)
        before, last = _between(summed.unflatten(1, (batch, -1)), torch.exp(log_q * chunk), state)
        reading = read.unsqueeze(-1) * torch.exp(log_q.unsqueeze(-1) * (lags + 1))
        y = torch.baddbmm(inside, before.flatten(1, 2), reading)
        return y.view(width, batch, tokens).permute(1, 2, 0), last

    def step(self, x: Float[Tensor, "batch width"], state: Float[Tensor, "batch width n"]) -> tuple[Tensor, Tensor]:
        """Return y of one token and the next state; O(1)."""
        enter, log_q, read = self.coefficients()
        state = torch.exp(log_q) * state + enter * x.float().unsqueeze(-1)
        return (state * read).sum(-1), state


def _toeplitz(kernel: Float[Tensor, "width lags"]) -> Float[Tensor, "width lags lags"]:
    """Matrix T[j, i] = K_{i-j}, 0 at negative lags."""
    lags = kernel.shape[-1]
    return nn.functional.pad(kernel, (lags - 1, 0)).unfold(-1, lags, 1).flip(1)


def _between(
    summed: Float[Tensor, "width batch chunks n"], decay: Float[Tensor, "width n"], state: Tensor | None
) -> tuple[Float[Tensor, "width batch chunks n"], Float[Tensor, "batch width n"]]:
    """Return the state before each chunk, and the one after the last."""
    current = torch.zeros_like(summed[:, :, 0]) if state is None else state.transpose(0, 1)
    decay = decay.unsqueeze(1)
    before = []
    for entered in summed.unbind(2):
        before.append(current)
        current = torch.addcmul(entered, decay, current)
    return torch.stack(before, dim=2), current.transpose(0, 1)


class MultiDimensionalEMA(nn.Module):
    """The layer's EMA: y + ω x, in one direction or (not `causal`) in both with kernels of their own.

    `method`: `fft`, `scan`, or `auto` (the scan on a CPU, where it is faster, and wherever a state is asked for).
    `truncation` drops the kernel after so many lags, as the paper's recipes do, and needs the FFT. Lag 0 counts in both
    directions. Raises ValueError for an unknown method.
    """

    METHODS = ("auto", "fft", "scan")

    def __init__(
        self, width: int, *, dimension: int = 16, causal: bool, method: str = "auto", truncation: int | None = None
    ) -> None:
        super().__init__()
        if method not in self.METHODS:
            raise ValueError(f"the EMA's method must be one of {', '.join(self.METHODS)}, got {method!r}")
        if truncation is not None and (method == "scan" or truncation < 1):
            raise ValueError("a truncated kernel has at least one lag and is computed by FFT: give method 'fft'")
        self.method, self.truncation = method, truncation
        self.forward_ema = DampedEMA(width, dimension=dimension)
        self.backward_ema = None if causal else DampedEMA(width, dimension=dimension)
        self.omega = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw ω; the averages draw their own."""
        nn.init.trunc_normal_(self.omega, std=1.0, a=-2.0, b=2.0)

    def forward(
        self, x: Float[Tensor, "batch tokens width"], mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        """Return the average of a whole sequence; padding (mask False) counts as zero."""
        x = _without_padding(x, mask)
        y = self._one_way(self.forward_ema, x)
        if self.backward_ema is not None:
            y = y + self._one_way(self.backward_ema, x.flip(1)).flip(1)
        return (y + self.omega.float() * x.float()).to(x.dtype)

    def continue_from(
        self, x: Float[Tensor, "batch tokens width"], state: Tensor | None, mask: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, "batch width n"]]:
        """Return the average and the state after it, from the state before (None: the beginning).

        The kernel's tail is kept here, also where `truncation` drops it. Padding may only come before the text. Raises
        ValueError for an EMA of both directions, which has no state.
        """
        if self.backward_ema is not None:
            raise ValueError("an EMA of both directions cannot go on from a state: make the model causal")
        x = _without_padding(x, mask)
        if x.shape[1] == 1 and state is not None:
            y, state = self.forward_ema.step(x[:, 0], state)
            y = y.unsqueeze(1)
        else:
            y, state = self.forward_ema.scan(x, state)
        return (y + self.omega.float() * x.float()).to(x.dtype), state

    def _one_way(self, ema: DampedEMA, x: Tensor) -> Tensor:
        if self.method == "fft" or self.truncation is not None or (self.method == "auto" and x.is_cuda):
            return ema.convolve(x, truncation=self.truncation)
        return ema.scan(x)[0]


def _without_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask.unsqueeze(-1)
