"""Which process holds what: the pipeline, data and tensor dimensions of one device mesh, and no expert dimension."""

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lib.grin.modeling import GrinConfig

DIMENSIONS = ("pipeline", "data", "tensor")  # the innermost talks most: neighbours, on one node


@dataclass(frozen=True)
class Layout:
    """How many processes share the layers (`pipeline`), the batch (`data`) and every expert (`tensor`).

    Each data-parallel worker cuts its part of a batch into `micro_batches`, which fill the pipeline. Raises ValueError
    for a count below 1.
    """

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    micro_batches: int = 1

    def __post_init__(self) -> None:
        if min(self.data, self.tensor, self.pipeline, self.micro_batches) < 1:
            raise ValueError(f"every count of a layout must be at least 1, got {self}")

    @property
    def processes(self) -> int:
        """Number of processes that the layout needs."""
        return self.data * self.tensor * self.pipeline

    def mesh(self, device_type: str) -> DeviceMesh:
        """Return the device mesh of all running processes; raises ValueError where their number does not fit."""
        world = dist.get_world_size()
        if world != self.processes:
            raise ValueError(
                f"a layout of {self.pipeline} pipeline x {self.data} data x {self.tensor} tensor needs "
                f"{self.processes} processes, but {world} are running: change --nproc-per-node or the layout"
            )
        shape = (self.pipeline, self.data, self.tensor)
        return init_device_mesh(device_type, shape, mesh_dim_names=DIMENSIONS)

    def check_model(self, config: GrinConfig) -> None:
        """Raise ValueError for a model that this layout cannot hold."""
        if config.intermediate_size % self.tensor:
            raise ValueError(
                f"the inner size {config.intermediate_size} of an expert cannot be shared by {self.tensor} processes"
            )
        if config.num_hidden_layers < self.pipeline:
            raise ValueError(f"{config.num_hidden_layers} layers cannot fill {self.pipeline} pipeline stages")
        if self.pipeline > 1 and config.tie_word_embeddings:
            raise ValueError("a pipeline's first and last stage cannot share tied word embeddings: untie them")
        if config.balance_shards != 1:
            raise ValueError(f"the parallel step balances over the global batch, not {config.balance_shards} shards")

    def check_batch(self, windows: int) -> None:
        """Raise ValueError for a batch that workers and micro-batches do not divide."""
        if windows == 0 or windows % (self.data * self.micro_batches):
            raise ValueError(
                f"a batch of {windows} windows cannot be cut into {self.data} x {self.micro_batches} micro-batches"
            )
