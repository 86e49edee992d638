"""Train a GRIN model on real text under a layout and compare it with one process, on CPUs or GPUs.

    torchrun --nproc-per-node 4 -m lib.grin.study.parallel --data 2 --tensor 2

The first process prints one JSON line: losses, the largest differences from one process, and tokens per second. Where
the differences exceed 1e-5 the exit status is 1.
"""

import argparse
import contextlib
import copy
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lib import TenfoldError, zoo
from lib.grin.configuration import GrinConfig
from lib.grin.modeling import GrinForCausalLM
from lib.grin.parallel import Layout, ParallelGrin, WindowDraws
from lib.grin.study.corpus import build_corpus, small_tokenizer
from lib.grin.trainer import TrainingPlan, batches

MOST_DIFFERENT = 1e-5


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m lib.grin.study.parallel", description=str(__doc__).split("\n")[0])
    counts = {
        "data": 1, "tensor": 1, "pipeline": 1, "micro-batches": 1, "steps": 4, "batch-size": 8, "window": 128,
        "vocabulary": 512, "width": 64, "layers": 2, "experts": 8, "inner": 128, "seed": 0,
    }  # fmt: skip
    for name, default in counts.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default: {default}")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="model whose tokenizer is cut to --vocabulary")
    parser.add_argument("--dataset", default="sharegpt")
    parser.add_argument("--checkpoint", metavar="FILE", help="written after half of the steps")
    parser.add_argument("--resume", metavar="FILE", help="go on from it, under any layout, to --steps in all")
    return parser.parse_args(given)


@contextlib.contextmanager
def processes() -> Iterator[str]:
    """Join the processes that torchrun started (or begin alone); yields this process's device."""
    cuda = torch.cuda.is_available()
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if cuda else "cpu"
    if cuda:
        torch.cuda.set_device(device)
    alone: dict[str, Any] = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("nccl" if cuda else "gloo", **alone)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def make_model(options: argparse.Namespace) -> GrinForCausalLM:
    """Return a new model of the sizes asked for, the same on every process."""
    torch.manual_seed(options.seed)
    heads = max(1, options.width // 64) * 2
    config = GrinConfig(
        vocab_size=options.vocabulary, hidden_size=options.width, intermediate_size=options.inner,
        num_hidden_layers=options.layers, num_attention_heads=heads, num_key_value_heads=heads // 2,
        num_local_experts=options.experts, max_position_embeddings=options.window, pad_token_id=None,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return GrinForCausalLM(config)


def real_windows(options: argparse.Namespace) -> Tensor:
    """Return the batches of all steps, [steps, batch, window], of real conversations."""
    _, tokenizer = zoo.load_lm(options.model)
    plan = TrainingPlan(steps=options.steps, batch_size=options.batch_size, learning_rate=options.learning_rate)
    records: Any = zoo.load_dataset(options.dataset, split="train", limit=options.steps * options.batch_size)
    windows = build_corpus(records, small_tokenizer(tokenizer, options.vocabulary), length=options.window).windows
    return windows[batches(len(windows), plan, seed=options.seed)]


def differences(reference: Any, made: ParallelGrin, windows: Tensor, *, seed: int) -> dict[str, float]:
    """Return how far loss and gradients of a step are from one process's, and leave the gradients at zero.

    Every process runs the whole batch through `reference`, whose balance loss is over all of them: copies of a batch.
    """
    WindowDraws(reference, seed=seed).at(0, range(len(windows)))
    loss = reference(windows, labels=windows).loss
    loss.backward()
    losses = made.gradients(windows, step=0)
    gathered = made.gathered("gradients")
    gaps = [(gathered[n] - p.grad.cpu()).abs().max() for n, p in reference.named_parameters() if p.grad is not None]
    made.model.zero_grad()
    return {"loss_difference": abs(losses.total - loss.item()), "gradient_difference": float(torch.stack(gaps).max())}


def run(options: argparse.Namespace, device: str) -> dict[str, Any]:
    """Compare one step, then train; returns what is printed."""
    layout = Layout(options.data, options.tensor, options.pipeline, options.micro_batches)
    layout.mesh(torch.device(device).type)  # a wrong number of processes is said before anything is loaded
    model, steps = make_model(options), real_windows(options).to(device)
    reference: Any = copy.deepcopy(model)
    reference.to(device).train()
    made = ParallelGrin(model, layout, device=device, seed=options.seed)
    report: dict[str, Any] = {"layout": vars(layout) | {"processes": layout.processes}, "device": device}
    report |= differences(reference, made, steps[0], seed=options.seed)
    optimizer = torch.optim.AdamW(made.parameter_groups(0.1), lr=options.learning_rate, betas=(0.9, 0.95))
    done = made.load(options.resume, optimizer) if options.resume else 0
    losses, began = [], time.perf_counter()
    for number, windows in list(enumerate(steps))[done:]:
        losses.append(made.gradients(windows, step=number).next_token)
        made.clip(1.0)
        optimizer.step()
        optimizer.zero_grad()
        if options.checkpoint and number + 1 == len(steps) // 2:
            made.save(options.checkpoint, optimizer, step=number + 1)
    seconds = time.perf_counter() - began
    return report | {"next_token_losses": losses, "tokens_per_second": steps[done:].numel() / seconds}


def main() -> int:
    """Run the command; a refusal is one sentence on stderr and exit status 2."""
    options = arguments()
    with processes() as device:
        try:
            report = run(options, device)
        except (ValueError, TenfoldError) as error:
            print(f"lib.grin.study.parallel: {error}", file=sys.stderr)
            return 2
        if dist.get_rank() == 0:
            print(json.dumps(report))
    return int(max(report["loss_difference"], report["gradient_difference"]) > MOST_DIFFERENT)


if __name__ == "__main__":
    sys.exit(main())
