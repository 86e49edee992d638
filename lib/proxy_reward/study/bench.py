"""Speed and memory: k-centre on a pool of the paper's kind, BADGE by factors, embeddings that share a prefix.

Ratios are ours / peer, so smaller is better. Peers of k-centre are a loop over scikit-learn's distances (how coreset
code commonly does it), and the minute and the GiB that it has for 100,000 points.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, cast

import numpy as np
import torch

from lib.core.generation import common_length
from lib.core.scoring import padded
from lib.proxy_reward.active import badge, gradient_embeddings
from lib.proxy_reward.covering import k_center
from lib.proxy_reward.embeddings import pooled_states

SECONDS, GIB = 60.0, 1.0  # what k-centre may take on the large pool


def cases(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the cases; `quick` is the smallest."""
    points, width, centres = (2_000, 32, 20) if quick else (100_000, 384, 1_000)
    yield from _within_limits(points, width, centres)
    yield from _against_scikit_learn(*((2_000, 32, 20) if quick else (20_000, 384, 100)))
    yield _badge(*((500, 16, 5) if quick else (5_000, 384, 50)))
    yield _shared_prefix(4 if quick else 12)


def cloud(points: int, width: int) -> torch.Tensor:
    """Points in a few clusters, of unit length like sentence embeddings."""
    g = torch.Generator().manual_seed(0)
    middles = torch.randn(64, width, generator=g)
    drawn = torch.randn(points, width, generator=g)
    for rows in drawn.split(8192):  # in place: the pool's own making must not be the peak
        rows += middles[torch.randint(64, (len(rows),), generator=g)]
        rows /= rows.norm(dim=1, keepdim=True)
    return drawn


@cache
def large_pool(points: int, width: int, centres: int) -> tuple[float, float]:
    """Seconds of k-centre on a pool and GiB of the whole process, which is one of its own."""
    program = f"from lib.proxy_reward.study import bench; print(*bench.seconds_and_gib({points}, {width}, {centres}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, gib = map(float, done.stdout.split()[-2:])
    return seconds, gib


def seconds_and_gib(points: int, width: int, centres: int) -> tuple[float, float]:
    """Wall-clock seconds of one k-centre, and the largest resident size of this process: torch, pool and distances."""
    pool = cloud(points, width)
    began = time.perf_counter()
    k_center(pool, centres, labelled=torch.arange(min(100, points // 10)))
    seconds = time.perf_counter() - began
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _within_limits(points: int, width: int, centres: int) -> Iterator[dict[str, Any]]:
    size = f"k-centre, {points} x {width}, {centres} centres"
    yield {
        "name": f"{size}: time", "unit": "seconds", "ours": lambda: large_pool(points, width, centres)[0],
        "peer": lambda: SECONDS, "peer_name": "the limit", "goal": 1.0,
    }  # fmt: skip
    yield {
        "name": f"{size}: memory of the process", "unit": "GiB",
        "ours": lambda: large_pool(points, width, centres)[1], "peer": lambda: GIB, "peer_name": "the limit",
        "goal": 1.0,
    }  # fmt: skip


def _against_scikit_learn(points: int, width: int, centres: int) -> Iterator[dict[str, Any]]:
    pool = cloud(points, width)
    yield {
        "name": f"k-centre, {points} x {width}, {centres} centres", "unit": "s",
        "ours": lambda: k_center(pool, centres, labelled=torch.arange(10)), "peer": scikit_learn(pool, centres, 10),
        "peer_name": "scikit-learn's euclidean_distances, centre by centre", "goal": 1.0,
    }  # fmt: skip


def scikit_learn(pool: torch.Tensor, centres: int, labelled: int) -> Callable[[], list[int]]:
    """Return a call that picks centres by scikit-learn's distances to each new one."""
    from sklearn.metrics.pairwise import euclidean_distances

    points = pool.numpy()

    def pick() -> list[int]:
        nearest = euclidean_distances(points, points[:labelled]).min(axis=1)
        chosen = []
        for _ in range(centres):
            chosen.append(int(nearest.argmax()))
            nearest = np.minimum(nearest, euclidean_distances(points, points[chosen[-1]][None])[:, 0])
        return chosen

    return pick


def _badge(items: int, width: int, picks: int) -> dict[str, Any]:
    features = cloud(items, width)
    probabilities = torch.randn(items, 5, generator=torch.Generator().manual_seed(1)).softmax(1)
    gradients = gradient_embeddings(probabilities, features)

    def explicit() -> list[int]:
        whole = (gradients.residual[:, :, None] * gradients.features[:, None, :]).flatten(1)
        g = torch.Generator().manual_seed(0)
        chosen = [int(whole.square().sum(1).argmax())]
        nearest = (whole - whole[chosen[0]]).square().sum(1)
        while len(chosen) < picks:
            chosen.append(int(torch.multinomial(nearest.double(), 1, generator=g)))
            nearest = torch.minimum(nearest, (whole - whole[chosen[-1]]).square().sum(1))
        return chosen

    return {
        "name": f"BADGE, {items} x {width}, 5 grades, {picks} picks", "unit": "s",
        "ours": lambda: badge(gradients, picks, generator=torch.Generator().manual_seed(0)), "peer": explicit,
        "peer_name": "explicit gradients", "goal": 1.0,
    }  # fmt: skip


def _shared_prefix(count: int) -> dict[str, Any]:
    from lib import zoo
    from lib.proxy_reward.generative import evaluation_ids
    from lib.zoo.dialogues import exchanges

    model, tokenizer = zoo.load_lm("smollm2-135m-instruct", dtype="bfloat16")
    records = zoo.load_dataset("sharegpt", split="test", limit=count)
    sequences = [evaluation_ids(tokenizer, q[:120], a[:120]) for q, a in exchanges(cast(Any, records))]
    starts = [common_length(sequences)] * len(sequences)
    return {
        "name": f"embeddings of {len(sequences)} evaluation prompts of {sum(map(len, sequences))} tokens", "unit": "s",
        "ours": lambda: pooled_states(model, sequences, starts=starts), "peer": whole_forward(model, sequences),
        "peer_name": "transformers' hidden states of whole texts, one batch", "goal": 1.0,
    }  # fmt: skip


def whole_forward(model: Any, sequences: list[list[int]]) -> Callable[[], torch.Tensor]:
    """Return a call that takes the last hidden states of padded whole sequences."""
    ids, mask = padded(sequences, side="right")

    @torch.inference_mode()
    def read() -> torch.Tensor:
        return model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state

    return read
