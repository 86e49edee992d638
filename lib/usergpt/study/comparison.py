"""The experiment: users beside benchmarks, topics, models judged on both sides, and what merging does."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from lib import TenfoldError
from lib.core.chat import ChatClient, ChatFailed, Decoding
from lib.core.statistics import Estimate, bootstrap_weights, jackknife, paired_difference, percentiles
from lib.usergpt.chat_annotator import ChatModel
from lib.usergpt.compare import Divergence, Population, distribution, labelled, rectified
from lib.usergpt.conversations import Conversation, ConversationReader, rank
from lib.usergpt.merging import Merge, merge_labels
from lib.usergpt.privacy import mask
from lib.usergpt.similarity import Calibration, cross_fit, indicator
from lib.usergpt.taxonomy import GoldLabel, Kind
from lib.usergpt.topics import Topics

JUDGE = """A person asked an AI assistant for something, and the assistant answered.
Request:
{request}

Answer:
{answer}

Does the answer give what the person needs, correctly and completely? Say one word: PASS or FAIL."""


# --- the corpus ----------------------------------------------------------------------------------------------------


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Refuse a part that is larger than its whole, and an endpoint without its three models, by a TenfoldError."""
    for part, whole in (("chat_gold", "gold"), ("topic_branches", "topics"), ("topics", "sample")):
        if parameters[part] > parameters[whole]:
            raise TenfoldError(f"{part} = {parameters[part]} is above {whole} = {parameters[whole]}: ask for fewer.")
    models = parameters["endpoint_models"]
    if parameters["endpoint"] and not all(models):
        raise TenfoldError(f"endpoint_models = {models}: name the weaker model, the stronger one and the judge.")


def corpus_counts(reader: ConversationReader, corpus: Sequence[Conversation]) -> dict[str, int]:
    """Count records, conversations kept and their threads, what a reader left out by reason, and what it noted."""
    counts = {"records": reader.read, "kept": len(corpus), "threads": len({c.thread for c in corpus})}
    counts |= {f"left out: {reason}": n for reason, n in reader.faults.items()}
    return counts | {f"noted: {note}": n for note, n in reader.notes.items()}


def show_page(page: Path) -> None:
    """Show a page below its cell in JupyterLab; in a headless run, whose notebook is published, show nothing."""
    if "JPY_SESSION_NAME" in os.environ and "TENFOLD_OUTPUT" not in os.environ:
        from IPython.display import IFrame, display

        display(IFrame(os.path.relpath(page), 1000, 800))


# --- users beside benchmarks ---------------------------------------------------------------------------------------


class Correction:
    """Shares of users by an annotator's scores, corrected by a person's labels of a part of the conversations.

    `gold` holds the labels of the conversations that a person labelled, `gold_groups` and `groups` the threads of
    these and of the many others.
    """

    def __init__(
        self, gold: Sequence[GoldLabel], gold_groups: Sequence[str], groups: Sequence[str], *, seed: int
    ) -> None:
        self.gold, self.gold_groups, self.groups, self.seed = gold, gold_groups, groups, seed

    def calibrated(
        self, kind: Kind, codes: Sequence[str], scores: np.ndarray, gold_scores: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Give probabilities of the labels: of the many conversations, and out of fold of the labelled ones."""
        labels = indicator(self.gold, codes, kind)
        fitted = Calibration().fit(gold_scores, labels)
        return fitted.predict(scores), cross_fit(gold_scores, labels, seed=self.seed)

    def shares(
        self,
        kind: Kind,
        codes: Sequence[str],
        many: np.ndarray,
        few: np.ndarray,
        *,
        rows: np.ndarray | None = None,
        each=distribution,
    ) -> Population:
        """Give users' shares from such probabilities, each conversation's made one vote by `each`.

        `rows` are those of the many conversations that count (all by default).
        """
        rows = np.arange(len(many)) if rows is None else rows
        groups, truth = [self.groups[int(i)] for i in rows], each(indicator(self.gold, codes, kind))
        return rectified(each(many[rows]), groups, truth, each(few), self.gold_groups, codes, seed=self.seed)

    def shares_by(self, kind: Kind, codes: Sequence[str], scores: np.ndarray, gold_scores: np.ndarray) -> Population:
        """Give users' shares from scores, calibrated and then corrected."""
        return self.shares(kind, codes, *self.calibrated(kind, codes, scores, gold_scores))


def of_each_collection(
    collections: Mapping[str, Sequence[GoldLabel]], kind: Kind, codes: Sequence[str], *, seed: int
) -> list[Population]:
    """Give the shares of each collection of benchmarks, resampled independently of the others."""
    return [
        labelled(
            distribution(indicator(rows, codes, kind)), [*map(str, range(len(rows)))], codes, unit="families", seed=s
        )
        for s, rows in enumerate(collections.values(), seed)
    ]


def overtested(users: Population, benchmarks: Population, codes: Sequence[str]) -> Estimate:
    """Estimate the share of some labels among benchmarks less that among users."""
    drawn = [side.draws[:, [side.codes.index(code) for code in codes]].sum(axis=1) for side in (benchmarks, users)]
    value = benchmarks.of(codes)[0] - users.of(codes)[0]
    return Estimate(value, *percentiles(drawn[0] - drawn[1]), f"{users.n}; {benchmarks.n}")


def beyond_resampling(one: Divergence, null: Float[np.ndarray, " resamples"]) -> dict[str, Any]:
    """Give the bits by which a divergence is above what resampling alone reaches in 97.5 % of cases, with interval."""
    top = float(np.quantile(null, 0.975))
    return {"estimate": one.value - top, "ci": tuple(end - top for end in one.ci)}


def as_groups(population: Population, groups: Mapping[str, str]) -> Population:
    """Sum the shares of labels that belong to one group."""
    names = sorted(set(groups.values()))
    table = group_table(population.codes, groups)
    return Population(tuple(names), population.point @ table, population.draws @ table, population.n)


def group_table(codes: Sequence[str], groups: Mapping[str, str]) -> Float[np.ndarray, "labels groups"]:
    """Tell which group each label belongs to, as zeros and ones."""
    return np.array([[float(groups[code] == name) for name in sorted(set(groups.values()))] for code in codes])


def two_sides(
    groups: Mapping[str, Sequence[str]], users: Population, benchmarks: Population, paper: Mapping[str, float]
) -> pd.DataFrame:
    """Lay out the shares of groups of labels, one row a group and side, beside the paper's."""
    rows = []
    for name, codes in groups.items():
        for side, population in {"users": users, "benchmarks": benchmarks}.items():
            value, low, high = population.of(codes)
            rows.append({"group": name, "side": side, "share": value, "low": low, "high": high})
        rows[-2]["paper"] = sum(paper[code] for code in codes)
    return pd.DataFrame(rows)


def sides_of(shares: pd.DataFrame) -> pd.DataFrame:
    """Lay a `share_table` out as one row a label and side, shares that a correction made negative as none."""
    benchmarks = {"benchmarks": "share", "benchmarks_low": "low", "benchmarks_high": "high"}
    users = shares.rename(columns={"users": "share"})[["name", "share", "low", "high"]].assign(side="users")
    other = shares.drop(columns=["low", "high"]).rename(columns=benchmarks)
    both = pd.concat([users, other[["name", "share", "low", "high"]].assign(side="benchmarks")])
    return both.assign(share=both["share"].clip(lower=0))


def divergence_table(
    versions: Mapping[str, Divergence],
    nulls: Mapping[str, Float[np.ndarray, " resamples"]],
    others: Mapping[str, Divergence],
) -> pd.DataFrame:
    """Lay out divergences with their intervals: versions of users' shares against benchmarks, then other pairs.

    A version stands beside what resampling alone reaches of it (97.5 %); the first is the one that is reported.
    """
    rows = []
    for place, (name, one) in enumerate({**versions, **others}.items()):
        called = name if name in others else f"users, {name}" if place else "users against benchmarks"
        null = float(np.quantile(nulls[name], 0.975)) if name in nulls else np.nan
        rows.append({"comparison": called, "bits": one.value, "low": one.ci[0], "high": one.ci[1], "null": null})
    return pd.DataFrame(rows)


def nearest_cosine(
    requests: Float[np.ndarray, "requests dim"], prompts: Float[np.ndarray, "prompts dim"], *, chunk: int = 1024
) -> Float[np.ndarray, "requests"]:
    """Give each request's cosine with the nearest benchmark prompt: how well the benchmarks cover it [requests]."""
    parts = [(requests[i : i + chunk] @ prompts.T).max(axis=1) for i in range(0, len(requests), chunk)]
    return np.concatenate(parts)


def coverage_table(
    near: Float[np.ndarray, " requests"],
    probabilities: Float[np.ndarray, "requests labels"],
    correction: Correction,
    names: Mapping[str, str],
) -> pd.DataFrame:
    """Average requests' cosines by task type, weighted by its probability, with intervals over the requests' threads.

    `names` are those of the labels, by code. A type that fewer than two labelled conversations have is left out, since
    nothing taught its probability.
    """
    weights, rows = bootstrap_weights(correction.groups, seed=correction.seed), []
    known = indicator(correction.gold, list(names), "tasks").sum(axis=0) >= 2
    for name, p in zip(np.array(list(names.values()))[known], probabilities.T[known], strict=True):
        low, high = percentiles((weights @ (near * p)) / (weights @ p))
        rows.append({"task": str(name), "cosine": float((near * p).sum() / p.sum()), "low": low, "high": high})
    return pd.DataFrame(rows).sort_values("cosine", ascending=False)


def topic_table(found: Topics, places: Float[np.ndarray, "texts 2"]) -> pd.DataFrame:
    """Lay out topics, the largest first: conversations, branch, and the middle of their places on the map."""
    rows = [
        (c.name, c.size, found.branches[c.branch], *np.median(places[found.member == c.number], axis=0))
        for c in found.clusters
    ]
    table = pd.DataFrame(rows, columns=["cluster", "conversations", "branch", "x", "y"])
    return table.sort_values("conversations", ascending=False)


# --- chat models ---------------------------------------------------------------------------------------------------


def clients(url: str, models: Sequence[str]) -> list[ChatClient]:
    """Give a client of an endpoint for each model: requests are masked, and asked at the temperature of the script."""
    decoding = Decoding(temperature=0.4, top_p=1, max_tokens=800)
    return [ChatClient(model=name, url=url, decoding=decoding, clean=mask, tries=6, pause=2) for name in models]


def failed(model: ChatModel, judge: ChatModel, requests: Sequence[str]) -> list[bool | None]:
    """Ask a judge model whether the model's answer to each request fails (table 4 of arXiv:2310.12418).

    None where model or judge gave nothing that can be read. The paper let people judge 20 answers a group of GPT-3.5
    and GPT-4; no model of a size that runs here can judge, so nothing is claimed from one.
    """
    asked = [mask(request) for request in requests]
    answers = model.complete_many(asked)
    pairs = [(r, a.text) for r, a in zip(asked, answers, strict=True) if not isinstance(a, ChatFailed)]
    said = iter(judge.complete_many([JUDGE.format(request=r, answer=a) for r, a in pairs]))
    return [None if isinstance(answer, ChatFailed) else _verdict(next(said)) for answer in answers]


def failures(models: Mapping[str, ChatModel], judge: ChatModel, requests: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Judge every model's answers to groups of requests: a row for each case that all have a verdict on, by model."""
    verdicts = {
        (group, case): values
        for group, texts in requests.items()
        for case, values in enumerate(zip(*(failed(model, judge, texts) for model in models.values()), strict=True))
    }
    frame = pd.DataFrame.from_dict(verdicts, orient="index", columns=list(models))
    frame.index = pd.MultiIndex.from_tuples(frame.index, names=["group", "case"])
    return frame.dropna().astype(float).reset_index()


def largest_gap(judged: pd.DataFrame, *, seed: int) -> Estimate:
    """Estimate the largest of the groups' failure rates of the stronger model less those of the weaker."""
    gaps = [
        paired_difference(own["stronger"].to_numpy(), own["weaker"].to_numpy(), seed=seed)
        for _, own in judged.groupby("group")
    ]
    return max(gaps, key=lambda gap: gap.value)


def _verdict(reply: Any) -> bool | None:
    if isinstance(reply, ChatFailed):
        return None
    words = {word for word in ("PASS", "FAIL") if word in reply.text.upper().split("\n")[0]}
    return "FAIL" in words if len(words) == 1 else None


# --- merging -------------------------------------------------------------------------------------------------------


def purity(names: Mapping[str, str], labels: Sequence[str], truth: Sequence[str]) -> float:
    """Give the share of items whose own label is the commonest one of their cluster (1: no cluster mixes kinds)."""
    by_cluster: dict[str, Counter[str]] = {}
    for label, own in zip(labels, truth, strict=True):
        by_cluster.setdefault(names[label], Counter())[own] += 1
    return sum(max(counter.values()) for counter in by_cluster.values()) / len(labels)


class Merging:
    """Free-form labels of conversations merged at a threshold, all of them or without a group of threads.

    `phrases` and `threads` are by conversation, `vectors` by common form; threads fall into `groups` groups.
    """

    def __init__(
        self, phrases: Mapping[str, str], threads: Mapping[str, str], vectors: Mapping[str, np.ndarray], *,
        groups: int, k: int, rare_below: int,
    ) -> None:  # fmt: skip
        self.phrases, self.vectors, self.groups = phrases, vectors, groups
        self.options: dict[str, Any] = {"k": k, "rare_below": rare_below}
        self.group = {i: rank(threads[i], "fold") % groups for i in phrases}

    def at(self, threshold: float, *, without: int | None = None) -> Merge:
        """Merge at a threshold, without one of the groups."""
        kept = pd.Series([phrase for i, phrase in self.phrases.items() if self.group[i] != without])
        return merge_labels(kept.value_counts().to_dict(), self.vectors, threshold=threshold, **self.options)

    def curve(self, thresholds: Sequence[float], truth: Mapping[str, str]) -> pd.DataFrame:
        """Lay out compression and purity by threshold; `truth` is a person's label by conversation."""
        rows, labels = [], [self.phrases[i] for i in truth]
        for threshold in thresholds:
            merge = self.at(threshold)
            pure = purity(merge.names, labels, list(truth.values()))
            rows.append({"threshold": threshold, "compression": merge.compression(), "purity": pure} | merge.counts)
        return pd.DataFrame(rows)

    def beyond_chance(self, threshold: float, truth: Mapping[str, str], *, orders: int = 1000, seed: int) -> Estimate:
        """Estimate the purity less that of `truth` dealt at random, with the interval that the random orders give."""
        names, labels, own = self.at(threshold).names, [self.phrases[i] for i in truth], list(truth.values())
        rng = np.random.default_rng(seed)
        shuffled = [[own[i] for i in rng.permutation(len(own))] for _ in range(orders)]
        more = purity(names, labels, own) - np.array([purity(names, labels, order) for order in shuffled])
        n = f"{len(own)} labelled conversations, {orders} random orders"
        return Estimate(float(more.mean()), *percentiles(more), n)

    def compression(self, threshold: float, step: str) -> Estimate:
        """Estimate the labels before over after a step, with its interval over groups of threads left out in turn."""
        value = self.at(threshold).compression(step)
        left_out = [self.at(threshold, without=group).compression(step) for group in range(self.groups)]
        n = f"{len(self.phrases)} conversations with a phrase, {self.groups} groups left out in turn"
        return Estimate(value, *jackknife(left_out, value), n)
