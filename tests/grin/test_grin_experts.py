"""Dropless dispatch against a loop over experts and against transformers' experts, for any skew."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F
from transformers import PhimoeConfig
from transformers.models.phimoe.modeling_phimoe import PhimoeExperts

from lib import grin, root
from lib.grin import experts as experts_module
from lib.grin.experts import plan_dispatch
from lib.grin.routing import Routing


def routing_of(indices, weights, experts, output_scale=None):
    tokens, k = indices.shape
    probs = torch.full((tokens, k, experts), 1 / experts, dtype=weights.dtype)
    alive = torch.full((tokens, k), experts)
    return Routing(weights, indices, probs, alive, torch.zeros(tokens, experts, dtype=weights.dtype), output_scale)


def slow(experts, hidden, routing):
    out = torch.zeros_like(hidden)
    rows = []
    for t in range(len(hidden)):
        row = out[t]
        for c in range(routing.indices.shape[1]):
            e = routing.indices[t, c]
            gate, up = (experts.gate_up_proj[e] @ hidden[t]).chunk(2)
            row = row + routing.weights[t, c] * (experts.down_proj[e] @ (F.silu(gate) * up))
        rows.append(row)
    return torch.stack(rows)


SKEWS = {
    "even": lambda t, e: torch.stack([torch.arange(t) % e, (torch.arange(t) + 1) % e], 1),
    "one expert gets all": lambda t, e: torch.stack([torch.zeros(t).long(), torch.full((t,), e - 1)], 1),
    "random": lambda t, e: torch.rand(t, e).topk(2).indices,
}


@pytest.mark.parametrize("skew", SKEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dispatch_equals_a_slow_loop_with_its_gradients(skew, dtype):
    torch.manual_seed(0)
    experts = grin.Experts(8, 12, 5).to(dtype)
    indices = SKEWS[skew](23, 5)
    inputs = [torch.randn(23, 8, dtype=dtype, requires_grad=True) for _ in range(2)]
    gates = [torch.rand(23, 2, dtype=dtype, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in "ab"]
    inputs[1].data.copy_(inputs[0].data)
    upstream, found = torch.randn(23, 8, dtype=dtype), []
    for run, hidden, gate in zip((experts, lambda h, r: slow(experts, h, r)), inputs, gates, strict=True):
        experts.zero_grad()
        output = run(hidden, routing_of(indices, gate, 5))
        output.backward(upstream)
        found.append([output, hidden.grad, gate.grad, *(p.grad.clone() for p in experts.parameters())])
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-5 if dtype == torch.float32 else 1e-10, rtol=1e-4)


def test_dispatch_equals_transformers_experts():
    torch.manual_seed(0)
    config = PhimoeConfig(hidden_size=16, intermediate_size=24, num_local_experts=4)
    config._experts_implementation = "eager"
    theirs = PhimoeExperts(config)
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    ours = grin.Experts(16, 24, 4)
    ours.load_state_dict(theirs.state_dict())
    hidden, indices, weights = torch.randn(40, 16), torch.rand(40, 4).topk(2).indices, torch.rand(40, 2)
    torch.testing.assert_close(ours(hidden, routing_of(indices, weights, 4)), theirs(hidden, indices, weights))


def test_the_two_expert_gradients_have_one_forward_and_one_router_gradient():
    experts, hidden = grin.Experts(8, 12, 4).double(), torch.randn(50, 8, dtype=torch.float64)
    outputs, score_gradients, expert_gradients, scales = [], [], [], []
    for mode in ("code", "algorithm"):
        z = torch.randn(50, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
        route = grin.route_named("sparsemixer_v2", expert_gradient=mode)
        found = route(z, top_k=2, jitter_eps=0.6, training=True, generator=torch.Generator().manual_seed(5))
        experts.zero_grad()
        output = experts(hidden, found)
        output.sum().backward()
        outputs.append(output.detach())
        score_gradients.append(z.grad)
        expert_gradients.append(experts.down_proj.grad.clone())
        scales.append(found.output_scale)
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*score_gradients)
    assert scales[0] is None
    assert (scales[1] < 1).any()
    assert not torch.allclose(*expert_gradients)


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("skew", SKEWS)
def test_a_plan_gives_each_dispatch_a_row_of_its_own_among_its_experts(skew, multiple):
    indices = SKEWS[skew](23, 5)
    plan = plan_dispatch(indices, 5, multiple=multiple)
    rows, expert = plan.rows.flatten(), indices.flatten()
    starts = torch.cat([torch.zeros(1).int(), plan.ends[:-1]])
    assert len(rows.unique()) == 46
    assert ((rows >= starts[expert]) & (rows < plan.ends[expert])).all()
    assert (plan.source[plan.rows] == torch.arange(23).unsqueeze(1)).all()
    assert (plan.ends.diff(prepend=torch.zeros(1).int()) % multiple == 0).all()
    assert len(plan.source) == plan.ends[-1] < 46 + 5 * multiple


def test_filling_rows_of_bfloat16_change_neither_output_nor_gradients(monkeypatch):
    torch.manual_seed(0)
    module = grin.Experts(16, 24, 5).bfloat16()
    hidden, indices = torch.randn(23, 16).bfloat16(), SKEWS["one expert gets all"](23, 5)
    found = []
    for multiple in (64, 1):
        monkeypatch.setattr(experts_module, "FEW_SHAPES", multiple)
        x, gates = hidden.clone().requires_grad_(), torch.ones(23, 2).requires_grad_()
        module.zero_grad()
        output = module(x, routing_of(indices, gates, 5))
        output.square().sum().backward()
        found.append([output, x.grad, gates.grad, *(p.grad.clone() for p in module.parameters())])
    for filled, plain in zip(*found, strict=True):
        torch.testing.assert_close(filled.float(), plain.float(), atol=2e-2, rtol=2e-2)


def test_bfloat16_and_one_dense_expert():
    experts = grin.Experts(16, 32, 4).bfloat16()
    hidden, indices = torch.randn(20, 16), torch.rand(20, 4).topk(2).indices
    routing = routing_of(indices, torch.rand(20, 2), 4)
    exact = grin.Experts(16, 32, 4)
    exact.load_state_dict({k: v.float() for k, v in experts.state_dict().items()})
    found = experts(hidden.bfloat16(), routing)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact(hidden, routing), atol=0.05, rtol=0.05)
    dense, alone = grin.Experts(16, 32, 1), torch.zeros(20, 1).long()
    only = routing_of(alone, torch.ones(20, 1), 1)
    torch.testing.assert_close(dense(hidden, only), slow(dense, hidden, only), atol=1e-5, rtol=1e-4)


COMPILED = """
import torch
from lib import grin
torch.manual_seed(0)
block = grin.GrinBlock(grin.GrinConfig(hidden_size=16, intermediate_size=24, num_local_experts=4)).eval()
found, hidden = [], torch.randn(1, 30, 16)
for run in (block, torch.compile(block, backend="eager")):
    block.zero_grad()
    given = hidden.clone().requires_grad_()
    output = run(given)
    output.square().sum().backward()
    found.append([output.detach(), given.grad, *(p.grad.clone() for p in block.parameters())])
for compiled, eager in zip(*found, strict=True):
    torch.testing.assert_close(compiled, eager)
"""


def test_a_compiled_block_is_the_block_with_its_gradients():
    # In a process of its own: the checks of shapes that tests run under cannot be traced.
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, cwd=root(), timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_only_the_products_asked_for_are_differentiated():
    torch.manual_seed(0)
    rows, weight = torch.randn(7, 4), torch.randn(3, 5, 4, requires_grad=True)
    experts_module.grouped_linear(rows, weight, torch.tensor([3, 3, 7])).sum().backward()
    torch.testing.assert_close(weight.grad[0], rows[:3].sum(0).expand(5, -1))
    assert torch.equal(weight.grad[1], torch.zeros(5, 4))  # a group without rows
