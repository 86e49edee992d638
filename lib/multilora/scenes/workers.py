"""Work on several processes, one thread each: models this small gain little from a second thread."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import torch


def map_jobs(function: Callable[..., Any], jobs: Sequence[tuple], *, processes: int) -> Iterator[tuple[int, Any]]:
    """(index, result) of `function(*job)` as jobs end; with one process they run here, in order."""
    if processes == 1:
        yield from ((index, function(*job)) for index, job in enumerate(jobs))
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_begin) as pool:
        running = {pool.submit(function, *job): index for index, job in enumerate(jobs)}
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        finally:
            for future in running:
                future.cancel()


def _begin() -> None:
    from diffusers.utils.logging import set_verbosity_error

    torch.set_num_threads(1)
    set_verbosity_error()  # its warnings about mixed precision are about nothing here, and one comes with every LoRA


def train_together(function: Callable[..., Any], *arguments: Any, processes: int) -> None:
    """Call a function that trains in several processes that share their gradients (accelerate, over gloo)."""
    if processes == 1:
        function(*arguments)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    jobs = [(function, arguments, rank, processes, port) for rank in range(processes)]
    for _ in map_jobs(_one_of, jobs, processes=processes):
        pass


def _one_of(function: Callable[..., Any], arguments: tuple, rank: int, world: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",  # where it is unset, accelerate gives each process all the cores' threads
    }  # fmt: skip
    function(*arguments)
    torch.distributed.destroy_process_group()
