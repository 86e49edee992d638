"""Speed: a sandbox call against a fresh `python` a call, and retrieval against a plain search of unbatched queries.

Ratios are ours / peer, so smaller is better. Goals in absolute terms are ratios to a constant: 5 ms a warm call, 200
calls a second on two workers, 5 ms a query over 10,000 functions.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lib.sciagent.retriever import EncoderIndex, WordIndex
from lib.sciagent.sandbox import Job, Limits, Sandbox

PRELOAD = ("numpy", "pandas", "fluids.core", "fluids.friction", "ht", "chemicals", "scipy.special")
PROGRAM = "answer = Reynolds(V=2.5, D=0.25, rho=1.1613, mu=1.9e-05)"
TOOLS = {"Reynolds": "fluids.core:Reynolds"}
FRESH = "from fluids.core import Reynolds\nprint(Reynolds(V=2.5, D=0.25, rho=1.1613, mu=1.9e-05))"


def cases(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the cases: programs on warm workers, throughput, and retrieval."""
    calls, functions = (10, 500) if quick else (100, 10_000)
    with Sandbox(workers=2, preload=PRELOAD, limits=Limits(seconds=10.0)) as sandbox:
        yield from _calls(sandbox, calls)
    yield from _retrieval(functions, 8 if quick else 32)


def _calls(sandbox: Sandbox, calls: int) -> Iterator[dict[str, Any]]:
    def checked() -> None:
        assert sandbox.run(PROGRAM, tools=TOOLS).ok

    few = max(7, calls // 10)
    yield {
        "name": "a program on a warm worker, against a fresh python", "unit": "ms", "peer_name": "python -I -c",
        "ours": lambda: _milliseconds(checked, calls), "peer": lambda: _milliseconds(_fresh, few), "goal": 0.1,
    }  # fmt: skip
    yield {
        "name": "a program on a warm worker, median", "unit": "ms", "ours": lambda: _milliseconds(checked, calls),
        "peer": lambda: [5.0] * min(calls, 7), "peer_name": "5 ms", "goal": 1.0,
    }  # fmt: skip
    yield {
        "name": "a program among many on two workers", "unit": "ms", "ours": lambda: _together(sandbox, 5 * calls),
        "peer": lambda: [5.0] * 5, "peer_name": "200 calls a second", "goal": 1.0,
    }  # fmt: skip


def _fresh() -> None:
    subprocess.run([sys.executable, "-I", "-c", FRESH], check=True, capture_output=True)


def _milliseconds(call: Callable[[], Any], times: int) -> list[float]:
    """Medians of up to seven parts of the calls, after one that is not counted."""
    call()
    taken = [1e3 * _seconds(call) for _ in range(times)]
    return [float(np.median(part)) for part in np.array_split(taken, min(times, 7))]


def _together(sandbox: Sandbox, calls: int) -> list[float]:
    """Milliseconds a program of five batches."""
    jobs = [Job(PROGRAM, TOOLS)] * calls
    sandbox.map(jobs[:10])
    return [1e3 * _seconds(lambda: sandbox.map(jobs)) / calls for _ in range(5)]


def _retrieval(functions: int, batch: int) -> Iterator[dict[str, Any]]:
    from lib.zoo import load_encoder

    encoder = load_encoder("minilm")
    draw = np.random.default_rng(0)
    vocabulary = np.array("pressure drop pipe heat flux vapor liquid density critical friction valve rate".split())
    texts = [" ".join(row) for row in draw.choice(vocabulary, (functions, 12))]
    queries = [" ".join(row) for row in draw.choice(vocabulary, (batch, 24))]
    yield from _by_encoder(encoder, queries, functions, draw)
    yield from _by_words(texts, queries)


def _by_encoder(
    encoder: Any, queries: list[str], functions: int, draw: np.random.Generator
) -> Iterator[dict[str, Any]]:
    index = _without_encoding(encoder, [f"f{i}" for i in range(functions)], draw)
    large = _without_encoding(encoder, [f"f{i}" for i in range(10 * functions)], draw)

    def one_by_one() -> None:
        """A plain search: each query encoded alone, all functions sorted."""
        vectors = index.vectors.numpy()
        for query in queries:
            np.argsort(-(vectors @ encoder.encode([query])[0].numpy()))[:5]

    def milliseconds(searched: EncoderIndex) -> list[float]:
        return [1e3 * _seconds(lambda: searched.search(queries, 5)) / len(queries) for _ in range(7)]

    where = f"{len(queries)} queries over {functions} functions"
    yield {
        "name": f"encoder, {where}", "unit": "s", "ours": lambda: index.search(queries, 5), "peer": one_by_one,
        "peer_name": "one query at a time, all sorted", "goal": 1.0,
    }  # fmt: skip
    yield {
        "name": f"encoder, a query of {where}", "unit": "ms", "peer_name": "5 ms", "goal": 1.0,
        "ours": lambda: milliseconds(index), "peer": lambda: [5.0] * 7,
    }  # fmt: skip
    yield {
        "name": f"encoder, a query of {len(queries)} queries over {10 * functions} functions", "unit": "ms",
        "ours": lambda: milliseconds(large), "peer": lambda: [5.0] * 7, "peer_name": "5 ms", "goal": None,
    }  # fmt: skip


def _by_words(texts: list[str], queries: list[str]) -> Iterator[dict[str, Any]]:
    from rank_bm25 import BM25Okapi

    sparse = WordIndex([f"f{i}" for i in range(len(texts))], texts)
    peer = BM25Okapi([text.split() for text in texts])
    taken = _seconds(lambda: [np.argsort(-peer.get_scores(q.split()))[:5] for q in queries])
    yield {
        "name": f"BM25, a query of {len(queries)} queries over {len(texts)} functions, against rank-bm25",
        "unit": "ms", "peer_name": "rank-bm25", "goal": 0.2,
        "ours": lambda: [1e3 * _seconds(lambda: sparse.search(queries, 5)) / len(queries)],
        "peer": lambda: [1e3 * taken / len(queries)],
    }  # fmt: skip


def _without_encoding(encoder: Any, names: list[str], draw: np.random.Generator) -> EncoderIndex:
    """An index of random unit vectors: search time does not depend on their direction."""
    import torch

    drawn = torch.from_numpy(draw.standard_normal((len(names), encoder.model.config.hidden_size), dtype=np.float32))
    return EncoderIndex(encoder, names, (), dtype="bfloat16", vectors=torch.nn.functional.normalize(drawn, dim=-1))


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
