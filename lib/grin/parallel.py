"""GRIN's parallelism: data, tensor-parallel experts and a pipeline, and no expert parallelism.

Expert parallelism sends tokens to their experts and, to bound what one device receives, drops some. Here each process
holds a slice of every expert, so that nothing is sent by expert and nothing dropped (arXiv:2409.12136, section 2.2). A
training step equals that of one process up to the order of sums. With the processes joined (by `torchrun`, on CPUs or
GPUs): `ParallelGrin(model, Layout(data=2, tensor=2))`; `lib.grin.study.parallel` is a whole program.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from lib.core.training import parameter_groups
from lib.grin.balance import balance_loss, z_loss
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
