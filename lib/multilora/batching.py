"""Whether composite's k passes run as one: measured on the first steps of a shape, where time and memory are known.

No pass is wasted on measuring. Each trial is a step of the run in one of the two ways, which agree to rounding; the
first is sequential and tells the memory of one pass. A denoiser's choices are kept as long as it lives.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

TRIALS = 3  # timed steps of each way
HEADROOM = 0.8  # of free memory that k copies may take

_CHOICES: "WeakKeyDictionary[nn.Module, dict[tuple, Choice]]" = WeakKeyDictionary()


@dataclass
class Choice:
    """What is known of one shape: peak bytes of one pass, seconds of each way, and the decision once there is one."""

    bytes_per_pass: int | None = None
    seconds: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    batched: bool | None = None

    def next_way(self) -> bool:
        """Way of the next step: sequential first (its memory is needed), then in turn, then what was faster."""
        if self.batched is not None:
            return self.batched
        return self.bytes_per_pass is not None and len(self.seconds[True]) <= len(self.seconds[False])

    def learn(self, batched: bool, seconds: float) -> None:
        """Add a timed step; decide when each way has its trials."""
        self.seconds[batched].append(seconds)
        if self.batched is None and min(map(len, self.seconds.values())) >= TRIALS:
            self.batched = min(self.seconds[True]) < min(self.seconds[False])

    def learn_memory(self, peak: int, free: float, k: int) -> None:
        """Keep the bytes of one pass; where k of them do not fit, the choice is made."""
        self.bytes_per_pass = peak
        if k * peak > HEADROOM * free:
            self.batched = False


def choice_for(denoiser: nn.Module, sample: Tensor, k: int) -> Choice:
    """Choice of a denoiser for a sample's shape, number format and device, and for k adapters."""
    key = (k, tuple(sample.shape), sample.dtype, str(sample.device))
    return _CHOICES.setdefault(denoiser, {}).setdefault(key, Choice())


def timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """Result of a call and its seconds, work on an accelerator included."""
    _synchronise(device)
    began = time.perf_counter()
    result = call()
    _synchronise(device)
    return result, time.perf_counter() - began


def _synchronise(device: torch.device) -> None:
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def with_peak(call: Callable[[], Any], device: torch.device) -> tuple[Any, int]:
    """Result of a call and the most bytes that it held at once beyond what was there before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = call()
        return result, torch.cuda.max_memory_allocated(device) - before
    with Live() as live:
        result = call()
    return result, live.peak


class Live(TorchDispatchMode):
    """Bytes of the tensors that are alive, counted as operations make them and as they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.level = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the storages that it made."""
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(made, Tensor):
                self._count(made.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        if not hasattr(storage, "_counted"):  # a view has the storage of what it views
            storage._counted = True
            self.level += storage.nbytes()
            self.peak = max(self.peak, self.level)
            finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.level -= size


def free_bytes(device: torch.device) -> float:
    """Memory that a pass may still take; infinite where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, on an accelerator or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
