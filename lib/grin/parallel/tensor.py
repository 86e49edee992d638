"""Tensor-parallel experts: every process holds a slice of every expert, so no token has to travel to its expert.

The inner size of each SwiGLU is sharded. One all-reduce adds up the outputs, one in the backward pass the gradients of
the inputs (section 2.2 of arXiv:2409.12136 counts two all-reduces against expert parallelism's two all-to-alls).
"""

import dataclasses
from typing import Any, cast

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from lib.grin.experts import Experts, dispatch
from lib.grin.modeling import GrinForCausalLM
from lib.grin.parallel.draws import own_layers
from lib.grin.routing import Routing


class ShardedExperts(nn.Module):
    """Experts whose inner size is split over a one-dimensional mesh; parameters are DTensors.

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
