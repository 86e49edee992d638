"""Speed of the MoE block against transformers' PhiMoE block and a dense block, forward and backward in training mode.

Ratios are ours / peer in seconds, so smaller is better.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import PhimoeConfig
from transformers.models.phimoe.modeling_phimoe import PhimoeSparseMoeBlock

from lib.grin.configuration import GrinConfig
from lib.grin.modeling import GrinBlock

WIDTH, INNER, TOKENS = 512, 1024, 4096
WARM_UP = 5  # steps of a block before it is timed


def cases(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the benchmarks: the block at several sizes against its peers, its router alone, and twice the tokens.

    `quick` is one small size. Unit s: the caller times `ours` and `peer` in turn.
    """

    def case(name: str, ours: Callable, peer: Callable, peer_name: str, goal: float) -> dict[str, Any]:
        return {"name": name, "unit": "s", "ours": ours, "peer": peer, "peer_name": peer_name, "goal": goal}

    tokens = 256 if quick else TOKENS
    sizes = [(8, torch.float32)] if quick else itertools.product((8, 16), (torch.float32, torch.bfloat16))
    for experts, dtype in sizes:
        ours = _grin_block(experts).to(dtype)
        name = f"moe block, {experts} experts, {tokens} tokens, {str(dtype).removeprefix('torch.')}"
        own = _training_step(ours, tokens, dtype)
        for kind, goal in (("eager", 1 / 1.5), ("grouped_mm", 1.0)):
            peer = _training_step(_phimoe_block(experts, kind).to(dtype), tokens, dtype)
            yield case(f"{name}, against PhiMoE {kind}", own, peer, f"transformers {kind}", goal)
        dense = _training_step(DenseBlock(WIDTH, 2 * INNER).to(dtype), tokens, dtype)
        yield case(f"{name}, against a dense block of equal active size", own, dense, "dense SwiGLU", 1 / 0.8)
        router = _training_step(ours, tokens, dtype, lambda x, moe=ours: moe.router(x.flatten(0, 1)).weights)
        yield case(f"router of the {name}", router, own, "whole block", 0.05)
    block = _grin_block(8)
    double, single = (_training_step(block, n * tokens, torch.float32) for n in (2, 1))
    yield case("twice the tokens", double, single, f"{tokens} tokens", 2.05)


class DenseBlock(torch.nn.Module):
    """A plain SwiGLU feed-forward layer: what a dense model has in place of a mixture."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate_up = torch.nn.Linear(width, 2 * inner, bias=False)
        self.down = torch.nn.Linear(inner, width, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the output for hidden states [batch, tokens, width]."""
        gate, up = self.gate_up(hidden).chunk(2, dim=-1)
        return self.down(torch.nn.functional.silu(gate) * up)


def moe_and_dense_steps(
    *, width: int, inner: int, experts: int, tokens: int, device: str = "cpu"
) -> tuple[Callable, Callable]:
    """Return two calls, a training step of a top-2 block and one of a dense block of equal active size, in float32."""
    moe = _training_step(_grin_block(experts, width=width, inner=inner).to(device), tokens, torch.float32)
    return moe, _training_step(DenseBlock(width, 2 * inner).to(device), tokens, torch.float32)


def seconds(step: Callable[[], Any]) -> float:
    """Return the wall-clock time of one call, in seconds, with the accelerator's queue emptied before and after."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    synchronize()
    began = time.perf_counter()
    step()
    synchronize()
    return time.perf_counter() - began


def _sizes(experts: int, width: int, inner: int) -> dict[str, Any]:
    return {
        "hidden_size": width, "intermediate_size": inner, "num_local_experts": experts,
        "num_experts_per_tok": min(2, experts), "router_jitter_noise": 0.1,
    }  # fmt: skip


def _grin_block(experts: int, *, width: int = WIDTH, inner: int = INNER) -> GrinBlock:
    torch.manual_seed(0)
    return GrinBlock(GrinConfig(**_sizes(experts, width, inner))).train()


def _phimoe_block(experts: int, implementation: str) -> PhimoeSparseMoeBlock:
    config = PhimoeConfig(**_sizes(experts, WIDTH, INNER))
    config._experts_implementation = implementation
    block = PhimoeSparseMoeBlock(config).train()
    for weight in block.parameters():
        torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    return block


def _training_step(
    block: torch.nn.Module, tokens: int, dtype: torch.dtype, run: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> Callable[[], None]:
    """Return a call that runs a block (or what `run` runs of it) forward and backward; warm already."""
    weight = next(block.parameters())
    hidden = torch.randn(1, tokens, weight.shape[-1], generator=torch.Generator().manual_seed(1))
    hidden = hidden.to(device=weight.device, dtype=dtype)

    def step() -> None:
        block.zero_grad(set_to_none=True)
        (run or block)(hidden.detach().requires_grad_()).sum().backward()

    # On CPUs bfloat16 products are compiled for each new shape, and routing makes new ones: reach the steady state.
    for _ in range(WARM_UP):
        step()
    return step
