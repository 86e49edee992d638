"""How a GRIN model is cut up: stages of layers, slices of every expert, and draws that do not depend on either."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from lib.grin.configuration import GrinConfig
from lib.grin.experts import Experts, dispatch
from lib.grin.modeling import GrinDecoderLayer, GrinForCausalLM
from lib.grin.routing import Route, Routing, concatenated

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


def own_layers(model: GrinForCausalLM) -> dict[int, GrinDecoderLayer]:
    """Return the decoder layers that this process holds, by their place in the whole model."""
    return {i: layer for i, layer in enumerate(model.model.layers) if isinstance(layer, GrinDecoderLayer)}


class WindowDraws:
    """Makes all routers of a model draw window by window; call `at` before every forward pass in training.

    The seed of a draw is a function of run, step, layer and window, and of nothing else: tensor-parallel processes must
    draw the same experts for the same token, and a run should not change on another number of processes.
    """

    def __init__(self, model: GrinForCausalLM, *, seed: int = 0) -> None:
        self.seed, self.step = seed, 0
        self.windows: Sequence[int] = ()
        for index, layer in own_layers(model).items():
            router = layer.mlp.router
            router.route = partial(self._route, index, router.route)

    def at(self, step: int, windows: Sequence[int]) -> None:
        """Say which step comes, and the numbers, in the global batch, of the windows that the next pass holds."""
        self.step, self.windows = step, windows

    def _route(self, layer: int, route: Route, scores: Tensor, *, training: bool, **options: object) -> Routing:
        if not training:
            return route(scores, training=False, **options)
        if not self.windows or len(scores) % len(self.windows):
            raise ValueError(f"{len(scores)} tokens are not {len(self.windows)} windows: call `at` before the pass")
        parts = []
        for number, rows in zip(self.windows, scores.chunk(len(self.windows)), strict=True):
            generator = torch.Generator(device=scores.device).manual_seed(self._seed_of(layer, number))
            parts.append(route(rows, training=True, generator=generator, **options))
        return concatenated(parts)

    def _seed_of(self, layer: int, window: int) -> int:
        text = f"{self.seed} {self.step} {layer} {window}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


class Elsewhere(nn.Module):
    """Stands where another stage holds a module: hidden states pass it unchanged, and names stay the whole model's."""

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the hidden states."""
        return hidden


def stage_layers(layers: int, stages: int) -> list[range]:
    """Return the layers of each stage: consecutive, and as even as they can be."""
    ends = [round(layers * stage / stages) for stage in range(stages + 1)]
    return [range(a, b) for a, b in zip(ends, ends[1:], strict=False)]


class Stage:
    """One stage of a model, cut out of it in place: its layers, and at the ends the embeddings or the norm and head."""

    def __init__(self, model: GrinForCausalLM, mesh: DeviceMesh) -> None:
        self.group, self.index, self.stages = mesh.get_group(), mesh.get_local_rank(), mesh.size()
        self.first, self.last = self.index == 0, self.index == self.stages - 1
        layers: Any = model.model.layers
        mine = stage_layers(len(layers), self.stages)[self.index]
        for index in range(len(layers)):
            if index not in mine:
                layers[index] = Elsewhere()
        if not self.first:
            model.model.embed_tokens = Elsewhere()
        if not self.last:
            model.model.norm, model.lm_head = Elsewhere(), Elsewhere()

    def receive(self, like: Float[Tensor, "windows length width"], *, back: bool = False) -> Tensor:
        """Wait for the stage before (`back`: for the one after) and return what it sent, of the shape of `like`."""
        arrived = torch.empty_like(like)
        dist.recv(arrived, group_src=self.index + (1 if back else -1), group=self.group)
        return arrived

    def send(self, value: Float[Tensor, "windows length width"], *, back: bool = False) -> None:
        """Send hidden states to the stage after, or gradients (`back`) to the one before."""
        dist.send(value.detach().contiguous(), group_dst=self.index + (-1 if back else 1), group=self.group)


class ShardedExperts(nn.Module):
    """Experts whose inner size is split over a one-dimensional mesh, so that no token has to travel to its expert.

    One all-reduce adds up the outputs, one in the backward pass the gradients of the inputs (section 2.2 of
    arXiv:2409.12136 counts two all-reduces against expert parallelism's two all-to-alls). Parameters are DTensors;
    `gate_up_proj` has the shape [experts, 2, inner, width], so that a slice holds the same rows of gate and up.
    """

    def __init__(self, experts: Experts, mesh: DeviceMesh) -> None:
        super().__init__()
        self.mesh, self.activation = mesh, experts.activation
        gate_up = experts.gate_up_proj.detach().unflatten(1, (2, -1))
        for name, weight in (("gate_up_proj", gate_up), ("down_proj", experts.down_proj.detach())):
            # Each process cuts its own slice: the weights are equal everywhere already.
            sharded = distribute_tensor(weight.contiguous(), mesh, [Shard(2)], src_data_rank=None)
            self.register_parameter(name, nn.Parameter(sharded))

    def forward(self, hidden: Float[Tensor, "tokens width"], routing: Routing) -> Float[Tensor, "tokens width"]:
        """Return the weighted sum of each token's whole experts, equal on all processes of the mesh."""
        routing = dataclasses.replace(routing, weights=self._enter(routing.weights))
        gate_up, down = (cast(Any, weight).to_local() for weight in (self.gate_up_proj, self.down_proj))
        part = dispatch(self._enter(hidden), routing, gate_up.flatten(1, 2), down, self.activation)
        summed = DTensor.from_local(part, self.mesh, [Partial()]).redistribute(placements=[Replicate()])
        return cast(Any, summed).to_local().to(hidden.dtype)

    def _enter(self, value: Tensor) -> Tensor:
        """Pass a value that is equal everywhere; its gradient is the sum of what the slices send back."""
        whole = DTensor.from_local(value, self.mesh, [Replicate()], run_check=False)
        return cast(Any, whole).to_local(grad_placements=[Partial()])


@torch.no_grad()
def make_equal(model: nn.Module, mesh: DeviceMesh) -> None:
    """Give all replicas of a stage the weights of the first, over the tensor and the data dimension."""
    for dimension in ("tensor", "data"):
        group = mesh[dimension].get_group()
        for value in (*model.parameters(), *model.buffers()):
            dist.broadcast(value.data, group_src=0, group=group)


def shard_experts(model: GrinForCausalLM, mesh: DeviceMesh) -> None:
    """Replace the experts of all layers that are held here by their slices, in place."""
    for layer in own_layers(model).values():
        layer.mlp.experts = ShardedExperts(layer.mlp.experts, mesh)
