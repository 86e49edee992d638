"""Pipeline stages: consecutive layers on consecutive processes, which pass hidden states on and gradients back."""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from lib.grin.modeling import GrinForCausalLM


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
