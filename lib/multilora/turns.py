"""LoRA Switch: whose turn it is at a denoising step (arXiv:2402.16843).

Symbols: `k` adapters, `tau` = τ steps a turn, the paper's step t = 1..N is `step` = t − 1 here.
"""

from lib import TenfoldError

CONVENTIONS = ("paper", "callback")


def turn(step: int, *, k: int, tau: int, convention: str = "paper") -> int:
    """Index of the active adapter at 0-based `step`: i(t) = ⌊((t−1) mod kτ)/τ⌋ of arXiv:2402.16843.

    `callback` is the released pipeline's own rule, which moves on after step i where i > 0 and i mod τ = 0: the first
    adapter gets τ + 1 steps. Raises TenfoldError where τ or k is below one, or for a convention of another name.
    """
    check_tau(tau)
    if k < 1 or step < 0:
        raise TenfoldError(f"a turn needs k ≥ 1 adapters and a step ≥ 0, not k={k} and step {step}.")
    if convention not in CONVENTIONS:
        raise TenfoldError(f"{convention!r} is no convention of switching: use 'paper' or 'callback'.")
    if convention == "callback":
        step = max(0, step - 1)  # the move that the formula makes before step s, the callback makes after it
    return step % (k * tau) // tau


def turns(steps: int, *, k: int, tau: int, convention: str = "paper") -> list[int]:
    """Schedule table of the first `steps` steps: one adapter index a step."""
    return [turn(step, k=k, tau=tau, convention=convention) for step in range(steps)]


def check_tau(tau: int) -> None:
    """Raise TenfoldError where τ is no whole number of steps of at least one."""
    if not isinstance(tau, int) or tau < 1:
        raise TenfoldError(f"tau is the whole number of steps of a turn, at least 1, not {tau!r}.")
