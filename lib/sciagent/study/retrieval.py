"""Retrieval as the notebook shows it: ranks of every retriever under every way to ask, and their table."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from lib.sciagent.retriever import Index
from lib.sciagent.study.evaluation import ranks, retrieval_row

DEPTH = 100  # functions searched; one below has no rank
Ranks = Mapping[tuple[str, str], Float[np.ndarray, "seeds queries"]]
Names = Sequence[Sequence[str]]


def ranks_of(
    indices: Mapping[str, Sequence[Index]],
    asking: Mapping[str, Sequence[str]],
    functions: Names,
    rank: Callable[[Names, Names], Float[np.ndarray, " queries"]] = ranks,
) -> dict[tuple[str, str], Float[np.ndarray, "seeds queries"]]:
    """Return the rank of each query's functions by retriever (its seeds first) and way to ask; infinity if not found.

    `rank` is `evaluation.ranks` (all of a query's functions are needed) or `evaluation.any_rank` (one serves).
    """
    return {
        (kind, asks): np.stack([rank(index.search(queries, DEPTH), functions) for index in seeds])
        for kind, seeds in indices.items()
        for asks, queries in asking.items()
    }


def hit_table(rank: Ranks) -> pd.DataFrame:
    """Return hit@k and MRR of each retriever and way to ask, mean over seeds."""
    return pd.DataFrame([{"retriever": kind, "query": asks} | retrieval_row(of) for (kind, asks), of in rank.items()])
