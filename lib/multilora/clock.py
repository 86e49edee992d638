"""Step clock: which denoising step a pipeline is at, read from its scheduler, so that no pipeline need be copied.

A pipeline calls `set_timesteps` once a run and `step` once at the end of each turn of its loop, however often it calls
the denoiser in between (true guidance of Flux, skipped layers of SD3, the second half of a Heun step).
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class StepClock:
    """Counts `scheduler.step` calls since the last `set_timesteps`; `step` is 0-based, `steps` the run's length."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self.step = 0
        self.runs = 0

    @property
    def steps(self) -> int:
        """Steps of the run as the scheduler has them."""
        timesteps = getattr(self._scheduler, "timesteps", None)
        return 0 if timesteps is None else len(timesteps)

    def _advance(self) -> None:
        self.step += 1

    def _restart(self) -> None:
        self.step = 0
        self.runs += 1


@contextmanager
def ticking(scheduler: Any) -> Iterator[StepClock]:
    """Clock of a scheduler while the block lasts; the scheduler's own methods come back at its end."""
    clock = StepClock(scheduler)
    with replaced(scheduler, "step", _then(scheduler.step, clock._advance)):
        with replaced(scheduler, "set_timesteps", _then(scheduler.set_timesteps, clock._restart)):
            yield clock


def _then(method: Any, afterwards: Any) -> Any:
    @functools.wraps(method)  # pipelines inspect the signature to know which arguments a scheduler takes
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        afterwards()
        return result

    return wrapped


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Instance attribute set while the block lasts, then what was there before (or nothing, so the class shows)."""
    had = name in vars(owner)
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
