"""What a retriever is tuned on, and how it does: ranks of every retriever under every way to ask, and their table."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Num

from lib.sciagent.retriever import Index
from lib.sciagent.study.corpus import Search, retrieval_examples
from lib.sciagent.study.evaluation import ranks, retrieval_row
from lib.sciagent.study.questions import Question
from lib.sciagent.tools import Toolset

DEPTH = 100  # functions searched; one below has no rank
Ranks = Mapping[tuple[str, str], Num[np.ndarray, "seeds queries"]]
Names = Sequence[Sequence[str]]


def lessons(
    asked: Sequence[Question], worded: Mapping[str, str], toolset: Toolset, search: Search
) -> tuple[list[str], list[str], list[list[str]]]:
    """Return what tunes a retriever: queries, texts of their functions, texts of the best-ranked wrong functions.

    Queries are questions made from documentation, with a plan and without, and those that a language model worded: one
    by each function's name in `worded`.
    """
    queries, positives, negatives = retrieval_examples(asked, toolset, search)
    near = zip(worded, search(list(worded.values())), strict=True)
    queries += worded.values()
    positives += [toolset[name].indexed() for name in worded]
    negatives += [[toolset[n].indexed() for n in names if n != name] for name, names in near]
    return queries, positives, negatives


def ranks_of(
    indices: Mapping[str, Sequence[Index]],
    asking: Mapping[str, Sequence[str]],
    functions: Names,
    rank: Callable[[Names, Names], Num[np.ndarray, " queries"]] = ranks,
) -> dict[tuple[str, str], Num[np.ndarray, "seeds queries"]]:
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


def with_plans(questions: Sequence[str], plans: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the ways to ask: the questions alone, and each followed by its plan by every planner."""
    asking = {"question": list(questions)}
    for planner, written in plans.items():
        asking[f"question + {planner}"] = [f"{q} {p}" for q, p in zip(questions, written, strict=True)]
    return asking
