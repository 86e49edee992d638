"""Schedules over denoising steps: whose turn it is in LoRA Switch (arXiv:2402.16843), and factors on a LoRA's weight.

Symbols: `k` adapters, `tau` = τ steps a turn, the paper's step t = 1..N is `step` = t − 1 here.
"""

from collections.abc import Callable, Mapping, Sequence

CONVENTIONS = ("paper", "callback")
Factor = Sequence[float] | Callable[[float], float]
Schedule = Mapping[str, Factor]


def turn(step: int, *, k: int, tau: int, convention: str = "paper") -> int:
    """Return the index of the active adapter at 0-based `step`: i(t) = ⌊((t−1) mod kτ)/τ⌋ of arXiv:2402.16843.

    `callback` is the released pipeline's own rule, which moves on after step i where i > 0 and i mod τ = 0: the first
    adapter gets τ + 1 steps. Raises ValueError where τ or k is below one, or for a convention of another name.
    """
    if not isinstance(tau, int) or tau < 1:
        raise ValueError(f"tau is the whole number of steps of a turn, at least 1, not {tau!r}")
    if k < 1 or step < 0:
        raise ValueError(f"a turn needs k ≥ 1 adapters and a step ≥ 0, not k={k} and step {step}.")
    if convention not in CONVENTIONS:
        raise ValueError(f"{convention!r} is no convention of switching: use 'paper' or 'callback'.")
    if convention == "callback":
        step = max(0, step - 1)  # the move that the formula makes before step s, the callback makes after it
    return step % (k * tau) // tau


def turns(steps: int, *, k: int, tau: int, convention: str = "paper") -> list[int]:
    """Return the schedule table of the first `steps` steps: one adapter index a step."""
    return [turn(step, k=k, tau=tau, convention=convention) for step in range(steps)]


def checked_schedule(schedule: Schedule | None, names: Sequence[str]) -> dict[str, Factor]:
    """Return a schedule, its names and kinds checked; raises ValueError for a stranger or another kind."""
    schedule = dict(schedule or {})
    strangers = [name for name in schedule if name not in names]
    if strangers:
        raise ValueError(f"the schedule names {strangers[0]!r}, which has no weight here: it may name {list(names)}.")
    for name, factor in schedule.items():
        if not callable(factor) and (isinstance(factor, str) or not isinstance(factor, Sequence) or not factor):
            raise ValueError(
                f"the schedule of {name!r} is neither a list of factors, one a step, nor a function of progress."
            )
    return schedule


def factor_at(factor: Factor | None, *, step: int, steps: int) -> float:
    """Return the factor at 0-based `step` of `steps`: functions get step / (steps − 1); lists keep their last entry."""
    if factor is None:
        return 1.0
    if callable(factor):
        return float(factor(min(1.0, step / max(1, steps - 1))))
    return float(factor[min(step, len(factor) - 1)])
