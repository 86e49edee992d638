"""GRIN's parallelism: data, tensor-parallel experts and a pipeline, and no expert parallelism.

Expert parallelism sends tokens to their experts and, to bound what one device receives, drops some. Here each process
holds a slice of every expert, so that nothing is sent by expert and nothing dropped (arXiv:2409.12136, section 2.2). A
training step equals that of one process up to the order of sums. With the processes joined (by `torchrun`, on CPUs or
GPUs): `ParallelGrin(model, Layout(data=2, tensor=2))`; `lib.grin.study.parallel` is a whole program.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lib.core.training import parameter_groups
from lib.grin.balance import balance_loss, z_loss
from lib.grin.modeling import GrinForCausalLM
from lib.grin.routing import Routing, concatenated
from lib.grin.sharding import Layout, Stage, WindowDraws, make_equal, own_layers, shard_experts

__all__ = ["Layout", "ParallelGrin", "StepLosses", "WindowDraws"]


@dataclass(frozen=True)
class StepLosses:
    """Losses of the whole batch: what is minimised, next-token loss (nats per token), mean balance loss of a layer."""

    total: float
    next_token: float
    balance: float


@dataclass
class _Pass:
    """One micro-batch between its passes: what came in, what went out, and each layer's routing."""

    windows: range
    given: Tensor
    out: Tensor
    routings: list[Routing]


class ParallelGrin:
    """A GRIN model cut up by a layout: this process's stage, slice and replica, in training mode.

    All micro-batches go forward, then all go backward (GPipe, arXiv:1811.06965). In between every layer knows the
    dispatch fractions of the whole step, over micro-batches and workers: the balance loss needs no pass of its own.

    The model is changed in place and weights are made equal to the first replica's. Draws depend on `seed`, step and
    window only. Raises ValueError for a layout that does not fit the model or the number of processes.
    """

    def __init__(self, model: GrinForCausalLM, layout: Layout, *, device: str = "cpu", seed: int = 0) -> None:
        layout.check_model(model.config)
        self.layout, self.device = layout, torch.device(device)
        self.mesh = layout.mesh(self.device.type)
        self.stage = Stage(model, self.mesh["pipeline"])
        self.model: Any = cast(Any, model).to(self.device).train()
        make_equal(self.model, self.mesh)
        if layout.tensor > 1:
            shard_experts(self.model, self.mesh["tensor"])
        self.draws = WindowDraws(self.model, seed=seed)
        self.data_group = self.mesh["data"].get_group()

    def gradients(self, windows: Int[Tensor, "windows length"], *, step: int = 0) -> StepLosses:
        """Add a batch's gradients, averaged over workers, to the parameters; every process passes the whole batch.

        Raises ValueError for a batch that workers and micro-batches do not divide.
        """
        self.layout.check_batch(len(windows))
        each = len(windows) // (self.layout.data * self.layout.micro_batches)
        start = self.mesh.get_local_rank("data") * self.layout.micro_batches * each
        numbers = [range(start + i * each, start + (i + 1) * each) for i in range(self.layout.micro_batches)]
        passes = [self._forward(windows, part, step) for part in numbers]
        auxiliary, balance = self._auxiliary([p.routings for p in passes])
        scores = [routing.scores for p in passes for routing in p.routings]
        pulls = torch.autograd.grad(auxiliary, scores)
        layers = len(own_layers(self.model))
        for index, done in enumerate(passes):
            self.draws.at(step, done.windows)
            self._backward(done, list(pulls[index * layers : (index + 1) * layers]))
        self._average()
        return self._losses(passes, auxiliary, balance)

    def _forward(self, windows: Tensor, part: range, step: int) -> _Pass:
        rows = windows[part.start : part.stop].to(self.device)
        self.draws.at(step, part)
        if self.stage.first:
            given = rows
            hidden = self.model.model(input_ids=rows, use_cache=False).last_hidden_state
        else:
            weight = next(self.model.parameters())
            like = torch.empty(*rows.shape, self.model.config.hidden_size, device=self.device, dtype=weight.dtype)
            given = self.stage.receive(like).requires_grad_()
            hidden = self.model.model(inputs_embeds=given, use_cache=False).last_hidden_state
        routings = [cast(Routing, layer.mlp.routing) for layer in own_layers(self.model).values()]
        if not self.stage.last:
            self.stage.send(hidden)
            return _Pass(part, given, hidden, routings)
        logits = self.model.lm_head(hidden)[:, :-1].flatten(0, 1)
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = nn.functional.cross_entropy(exact, rows[:, 1:].flatten()) / self.layout.micro_batches
        return _Pass(part, given, loss, routings)

    def _backward(self, done: _Pass, pulls: list[Tensor]) -> None:
        """Send one micro-batch back through the stage, with the auxiliary losses' gradients in its router scores."""
        arrived = None if self.stage.last else self.stage.receive(done.out, back=True)
        torch.autograd.backward([done.out, *(r.scores for r in done.routings)], [arrived, *pulls])
        if not self.stage.first:
            self.stage.send(cast(Tensor, done.given.grad), back=True)

    def _auxiliary(self, routings: list[list[Routing]]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return this stage's part of the auxiliary loss and of the balance loss, for all micro-batches at once."""
        config, whole = self.model.config, [concatenated(parts) for parts in zip(*routings, strict=True)]
        layers = config.num_hidden_layers
        balance = torch.stack([balance_loss(r, group=self.data_group) for r in whole]).sum() / layers
        z = torch.stack([z_loss(r.scores) for r in whole]).sum() / layers
        weight = config.router_aux_loss_coef if config.num_local_experts > 1 else 0.0
        return weight * balance + config.router_z_loss_coef * z, balance

    def _average(self) -> None:
        if self.layout.data == 1:
            return
        gradients = [_local(cast(Tensor, p.grad)) for p in self.model.parameters()]
        pending: list[Any] = [dist.all_reduce(g, group=self.data_group, async_op=True) for g in gradients]
        for gradient, work in zip(gradients, pending, strict=True):
            work.wait()
            gradient /= self.layout.data

    @torch.no_grad()
    def _losses(self, passes: list[_Pass], auxiliary: Tensor, balance: Tensor) -> StepLosses:
        own = torch.stack([p.out for p in passes]).sum() if self.stage.last else torch.zeros_like(balance)
        sums = torch.stack([own + auxiliary, own.to(auxiliary.dtype), balance])
        dist.all_reduce(sums, group=self.stage.group)
        dist.all_reduce(sums, group=self.data_group)
        return StepLosses(*(sums / self.layout.data).tolist())

    @torch.no_grad()
    def clip(self, most: float) -> float:
        """Scale all gradients down to a norm of at most `most` over the whole model; return the norm before."""
        squares = torch.zeros(2, device=self.device)
        for parameter in self.model.parameters():
            squares[int(isinstance(parameter, DTensor))] += _local(parameter.grad).float().square().sum()
        dist.all_reduce(squares[1:], group=self.mesh["tensor"].get_group())  # slices; the rest is held by all
        total = squares.sum()
        dist.all_reduce(total, group=self.stage.group)
        for parameter in self.model.parameters():
            _local(parameter.grad).mul_((most / (total.sqrt() + 1e-6)).clamp(max=1.0))
        return float(total.sqrt())

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return the optimiser's groups: as for one process, with slices apart (an update takes one kind at a time)."""
        groups = parameter_groups(self.model, weight_decay)
        return [
            {**group, "params": params}
            for group in groups
            for sliced in (False, True)
            if (params := [p for p in group["params"] if isinstance(p, DTensor) == sliced])
        ]

    @torch.no_grad()
    def gathered(self, what: Literal["weights", "gradients"] = "weights") -> dict[str, Tensor]:
        """Return the whole model's weights or gradients by name, in one process's shapes, on every process."""
        named = self.model.named_parameters()
        return self._whole({name: p if what == "weights" else p.grad for name, p in named})

    def save(self, path: str | Path, optimizer: torch.optim.Optimizer, *, step: int) -> None:
        """Write weights, optimiser state and the number of steps done, in one process's shapes: any layout may go on.

        Every process calls it; the first one writes, to a temporary name that it renames.
        """
        named = list(self.model.named_parameters())
        state = {key: self._whole({name: optimizer.state[p][key] for name, p in named}) for key in _kept(optimizer)}
        state["weights"] = self.gathered()
        if dist.get_rank() == 0:
            unfinished = Path(f"{path}.part")
            torch.save({"step": step, "state": state}, unfinished)
            unfinished.rename(path)
        dist.barrier()

    @torch.no_grad()
    def load(self, path: str | Path, optimizer: torch.optim.Optimizer) -> int:
        """Take weights and optimiser state from a file that `save` wrote, under any layout; return the steps done.

        The optimiser is new, of the same kind, over this model's parameters. Draws depend on seed, step and window, so
        that the next step is the one that would have followed. Raises ValueError for the weights of another model.
        """
        saved = torch.load(path, map_location="cpu", weights_only=True)
        weights = saved["state"].pop("weights")
        for name, parameter in self.model.named_parameters():
            if name not in weights:
                raise ValueError(f"{path} holds another model: it has no {name}")
            parameter.copy_(self._own(name, parameter, weights[name]))
            optimizer.state[parameter] = {
                key: self._own(name, parameter, values[name]) for key, values in saved["state"].items()
            }
        return saved["step"]

    def _whole(self, values: dict[str, Any]) -> dict[str, Tensor]:
        """Return tensors of this process's parameters, and of all other stages', whole and on the CPU."""
        own = {}
        for name, value in values.items():
            if isinstance(value, DTensor):
                value = value.full_tensor().flatten(1, 2) if name.endswith("gate_up_proj") else value.full_tensor()
            own[name] = value.detach().cpu().clone()
        stages: list[Any] = [None] * self.layout.pipeline
        dist.all_gather_object(stages, own, group=self.stage.group)
        return {name: value for stage in stages for name, value in stage.items()}

    def _own(self, name: str, parameter: Tensor, whole: Tensor) -> Tensor:
        """Return this process's part of a whole tensor, laid out as its parameter is; numbers have no parts."""
        if not isinstance(parameter, DTensor) or whole.ndim == 0:
            return whole if whole.ndim == 0 else whole.to(self.device)
        whole = whole.unflatten(1, (2, -1)) if name.endswith("gate_up_proj") else whole
        mesh, placements = parameter.device_mesh, parameter.placements
        return distribute_tensor(whole.contiguous().to(self.device), mesh, placements, src_data_rank=None)


def _kept(optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of what an optimiser keeps of each parameter; ValueError before its first step."""
    if not optimizer.state:
        raise ValueError("the optimiser has taken no step yet: there is no state to save")
    return list(next(iter(optimizer.state.values())))


def _local(value: Tensor) -> Tensor:
    return cast(Any, value).to_local() if isinstance(value, DTensor) else value
