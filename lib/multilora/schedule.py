"""When what is active: turns of LoRA Switch (arXiv:2402.16843), factors by step, and the clock of a scheduler's steps.

Symbols: `k` adapters, `tau` = τ steps a turn, the paper's step t = 1..N is `step` = t − 1 here.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from lib import TenfoldError
from lib.multilora.layers import replaced

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


class StepClock:
    """Counts the steps of a pipeline's runs by its scheduler; calls `begun()` and `moved()` between the denoiser's.

    A pipeline calls `set_timesteps` once a run, `progress_bar` where its loop begins, and `scheduler.step` at the end
    of each turn of the loop, however often it calls the denoiser in between (true guidance of Flux, skipped layers of
    SD3, the second half of a Heun step). All of these run eagerly, whatever of the denoiser is compiled.
    """

    def __init__(self, pipe: Any, begun: Callable[[], None], moved: Callable[[], None], stack: ExitStack) -> None:
        self.pipe, self._begun, self._moved, self._stack = pipe, begun, moved, stack
        self._followed: list[Any] = []
        self._its_own_run = False
        self.step = self.runs = 0
        self.follow()
        if callable(getattr(pipe, "progress_bar", None)):
            stack.enter_context(replaced(pipe, "progress_bar", _then(pipe.progress_bar, self._enter)))

    @property
    def steps(self) -> int:
        """Steps of the run: fewer than the scheduler's timesteps in image-to-image, or with `denoising_end`."""
        told = getattr(self.pipe, "num_timesteps", None)
        if self._its_own_run and isinstance(told, int):
            return told
        scheduler = self._followed[-1]
        timesteps = getattr(scheduler, "timesteps", None)
        return 0 if timesteps is None else len(timesteps) - (getattr(scheduler, "begin_index", None) or 0)

    def follow(self) -> bool:
        """Follow the pipeline's scheduler, unless it is followed already; return whether it is a new one."""
        scheduler = self.pipe.scheduler
        if any(scheduler is one for one in self._followed):
            return False
        self._followed.append(scheduler)
        for name, then in (("step", self._advance), ("set_timesteps", self._begin)):
            method = _then(getattr(scheduler, name), then)
            self._stack.enter_context(replaced(scheduler, name, method))
        return True

    def check(self) -> None:
        """Raise TenfoldError where the scheduler was replaced and nothing told where its runs began."""
        if self.follow():
            raise TenfoldError("the scheduler was replaced inside compose, and no run followed: replace it before.")

    def _enter(self) -> None:
        if self.follow():  # the scheduler was replaced inside the block, and has its timesteps already
            self._begin()
        self._its_own_run = True

    def _begin(self) -> None:
        self.step, self._its_own_run = 0, False
        self.runs += 1
        self._begun()

    def _advance(self) -> None:
        self.step += 1
        self._moved()


def _then(method: Any, afterwards: Any) -> Any:
    @functools.wraps(method)  # pipelines inspect the signature to know which arguments a scheduler takes
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        afterwards()
        return result

    return wrapped
