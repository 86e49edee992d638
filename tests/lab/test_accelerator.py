"""The pretended accelerator: what a real one refuses is refused, what it takes is taken. In a process of its own."""

import subprocess
import sys
import textwrap

BEGIN = """
import copy, torch
from torch import nn
import torch.nn.functional as F
from lib.lab import accelerator
accelerator.pretend()
net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)).to("cuda")
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", BEGIN + textwrap.dedent(code)], capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


RIGHT = """
x = torch.randn(3, 4, device=net[0].weight.device)
assert x.device.type == "cuda" and next(net.parameters()).device.type == "cuda"
optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2, fused=False)
for _ in range(3):
    loss = F.cross_entropy(net(x), torch.tensor([0, 1, 1]).to("cuda"))
    loss.backward(); optimiser.step(); optimiser.zero_grad()
twin = copy.deepcopy(net)
assert twin(x).detach().cpu().numpy().shape == (3, 2)
assert (x.view(-1)[torch.arange(2)] * 2.0 + torch.tensor(1.0)).device.type == "cuda"  # indices and scalars may be here
g = torch.Generator(device="cuda").manual_seed(0)
assert torch.multinomial(torch.ones(3, device="cuda"), 2, generator=g).device.type == "cuda"
with torch.device("cuda"):
    assert (nn.Linear(4, 4)(x) + torch.zeros(4)).device.type == "cuda"
assert x.new_tensor([1.0]).device.type == "cuda" and x.cpu().device.type == "cpu" and x.cpu().to(x).device == x.device
class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x
    @staticmethod
    def backward(ctx, gradient):
        return torch.full(gradient.shape, 2.0, device=gradient.device) * gradient
Twice.apply(net(x)).sum().backward()
(net(x).cpu() * torch.ones(2)).sum().backward()
net(x).unbind(0)[0].sum().backward()
from transformers import LlamaConfig, LlamaForCausalLM
lm = LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
    vocab_size=32)).to("cuda")
assert lm.device.type == "cuda"
assert F.one_hot(torch.tensor([1], device="cuda"), 3).device.type == "cuda"
assert nn.utils.rnn.pad_sequence([net(x)[0], net(x)[0, :1]], batch_first=True).device.type == "cuda"
prompt = torch.tensor([[1, 2, 3]], device=lm.device)
tokens = lm.generate(prompt, min_new_tokens=3, max_new_tokens=3, do_sample=True, pad_token_id=0)
assert tokens.shape == (1, 6) and tokens.device.type == "cuda"
"""


def test_a_program_that_a_real_accelerator_takes_runs():
    assert run(RIGHT) == ""


REFUSED = {
    "net(torch.randn(3, 4))": "Expected all tensors to be on the same device",
    "net(torch.randn(3, 4, device='cuda')) + torch.zeros(2)": "Expected all tensors to be on the same device",
    "F.cross_entropy(net(torch.randn(3, 4).cuda()), torch.tensor([0, 1, 1]))": "on the same device",
    "torch.cat([torch.ones(2), torch.ones(2, device='cuda')])": "on the same device",
    "net[0].weight.detach().numpy()": "can't convert cuda:0 device type tensor to numpy",
    "numpy.asarray(torch.ones(2, device='cuda'))": "can't convert cuda:0",
    "torch.rand(2, device='cuda', generator=torch.Generator())": "Expected a 'cuda' device type for generator",
    "torch.rand(2, generator=torch.Generator('cuda'))": "Expected a 'cpu' device type for generator",
}


def test_what_a_real_accelerator_refuses_is_refused():
    missed = run(f"""
        import numpy
        missed = []
        for code, says in {REFUSED!r}.items():
            try:
                eval(code)
                missed.append(code)
            except (RuntimeError, TypeError) as error:
                missed += [code] if says not in str(error) else []
        if missed:
            raise SystemExit(" | ".join(missed))
    """)
    assert missed == ""
