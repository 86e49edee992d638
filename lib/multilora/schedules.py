"""Per-step schedules: factors on an adapter's weight, by step or by progress through the denoising run."""

from collections.abc import Callable, Mapping, Sequence

from lib import TenfoldError

Factor = Sequence[float] | Callable[[float], float]
Schedule = Mapping[str, Factor]


def checked(schedule: Schedule | None, names: Sequence[str]) -> dict[str, Factor]:
    """Schedule with its names and kinds checked; raises TenfoldError for a stranger, an empty list or another kind."""
    schedule = dict(schedule or {})
    strangers = [name for name in schedule if name not in names]
    if strangers:
        raise TenfoldError(f"the schedule names {strangers[0]!r}, which has no weight here: it may name {list(names)}.")
    for name, factor in schedule.items():
        if not callable(factor) and (isinstance(factor, str) or not isinstance(factor, Sequence) or not factor):
            raise TenfoldError(
                f"the schedule of {name!r} is neither a list of factors, one a step, nor a function of progress."
            )
    return schedule


def factor_at(factor: Factor | None, *, step: int, steps: int) -> float:
    """Factor at 0-based `step` of `steps`: a function gets step / (steps − 1); a list keeps its last entry."""
    if factor is None:
        return 1.0
    if callable(factor):
        return float(factor(min(1.0, step / max(1, steps - 1))))
    return float(factor[min(step, len(factor) - 1)])
