"""The experiment: annotators against a person's labels, users beside benchmarks, what pools and merging do."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from lib.core.chat import ChatFailed
from lib.core.statistics import Estimate, bootstrap, bootstrap_weights, jackknife, percentiles
from lib.usergpt.chat_annotator import ChatModel
from lib.usergpt.compare import Divergence, Population, distribution, rectified
from lib.usergpt.conversations import rank
from lib.usergpt.merging import Merge, merge_labels, purity
from lib.usergpt.privacy import mask
from lib.usergpt.similarity import Calibration, Cut, LabelSpace, choose, cross_fit, indicator
from lib.usergpt.taxonomy import OTHER, GoldLabel, Kind, agreement, labels_of

JUDGE = """A person asked an AI assistant for something, and the assistant answered.
Request:
{request}

Answer:
{answer}

Does the answer give what the person needs, correctly and completely? Say one word: PASS or FAIL."""
Labels = Mapping[str, GoldLabel]


# --- annotators against a person -----------------------------------------------------------------------------------


def zero_shot_labels(
    spaces: Mapping[Kind, LabelSpace], embeddings: Any, identities: Sequence[str], cuts: Mapping[Kind, Cut]
) -> dict[str, GoldLabel]:
    """Label conversations by their similarity scores and a cut for each kind; abstentions are the code for none."""
    chosen = {kind: choose(space.scores(embeddings), space.codes, cuts[kind]) for kind, space in spaces.items()}
    rows = zip(identities, chosen["domains"], chosen["tasks"], strict=True)
    return {i: GoldLabel(i, (domain or (OTHER,))[0], tasks or (OTHER,)) for i, domain, tasks in rows}


def best_cuts(
    truth: Labels,
    spaces: Mapping[Kind, LabelSpace],
    embeddings: Any,
    identities: Sequence[str],
    *,
    margin: float = 0.03,
) -> dict[Kind, Cut]:
    """Choose the threshold of greatest κ with a person's labels for each kind."""

    def kappa(kind: Kind, threshold: float) -> float:
        cut = Cut(threshold, margin=margin)
        return agreement(
            truth, zero_shot_labels(spaces, embeddings, identities, dict.fromkeys(spaces, cut)), kind
        ).kappa

    grid = np.arange(0.0, 0.4, 0.02).tolist()
    return {kind: Cut(max(grid, key=lambda t, kind=kind: kappa(kind, t)), margin=margin) for kind in spaces}


def guide_labels(frame: pd.DataFrame) -> dict[str, GoldLabel]:
    """Take a chat model's codes (`id`, `domain`, `tasks`, `fault`) as labels; faults are the code for none."""
    rows = frame[["id", "domain", "tasks"]].itertuples(index=False)
    return {i: GoldLabel(i, domain or OTHER, (tasks or OTHER,)) for i, domain, tasks in rows}


def reweighed(
    told: Float[np.ndarray, "texts labels"], prior: Float[np.ndarray, "... labels"], *, trust: float = 0.75
) -> Float[np.ndarray, "texts labels"]:
    """Probabilities of the labels, by a prior and a chat model's log-probabilities with its own prior taken out.

    A small model writes some names whatever it reads: a label counts by how much likelier a reply makes it than the
    model's replies do on average. `prior` is one row for all texts, or one for each, as another annotator gives it;
    `trust` is below 1 since the model is surer than it is right, and sees what the other annotator sees.
    """
    said = np.exp(told)
    said /= said.sum(axis=1, keepdims=True)
    both = prior * (said / said.mean(axis=0)) ** trust  # p(ℓ | x, reply) ∝ p(ℓ | x) · (q(ℓ | reply) / q(ℓ))^trust
    return both / both.sum(axis=1, keepdims=True)


def right(truth: Labels, labels: Labels, kind: Kind) -> list[float]:
    """Give 1 for each conversation whose main label is the person's, else 0."""
    return [float(labels_of(truth[i], kind)[0] == labels_of(label, kind)[0]) for i, label in labels.items()]


def quality_table(truth: Labels, annotators: Mapping[str, Labels], *, seed: int) -> pd.DataFrame:
    """Lay out how each annotator agrees with a person's labels, one row an annotator and kind."""
    rows = []
    for name, labels in annotators.items():
        for kind in ("tasks", "domains"):
            share = bootstrap(right(truth, labels, kind), seed=seed, unit="conversations")
            own = {"annotator": name, "kind": kind, "accuracy": share.value, "low": share.low, "high": share.high}
            rows.append(own | vars(agreement(truth, labels, kind)))
    return pd.DataFrame(rows)


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
    divergences: Mapping[str, Divergence], nulls: Mapping[str, Float[np.ndarray, " resamples"]]
) -> pd.DataFrame:
    """Lay out divergences with their intervals beside what resampling alone reaches (97.5 %), where it is known."""
    rows = []
    for name, one in divergences.items():
        null = float(np.quantile(nulls[name], 0.975)) if name in nulls else np.nan
        rows.append({"comparison": name, "bits": one.value, "low": one.ci[0], "high": one.ci[1], "null": null})
    return pd.DataFrame(rows)


def coverage_table(
    near: Float[np.ndarray, " requests"],
    probabilities: Float[np.ndarray, "requests labels"],
    names: Sequence[str],
    groups: Sequence[str],
    *,
    seed: int,
) -> pd.DataFrame:
    """Average requests' cosines by task type, weighted by its probability, with intervals over groups."""
    weights, rows = bootstrap_weights(groups, seed=seed), []
    for name, p in zip(names, probabilities.T, strict=True):
        low, high = percentiles((weights @ (near * p)) / (weights @ p))
        rows.append({"task": name, "cosine": float((near * p).sum() / p.sum()), "low": low, "high": high})
    return pd.DataFrame(rows).sort_values("cosine", ascending=False)


# --- chat models ---------------------------------------------------------------------------------------------------


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


def _verdict(reply: Any) -> bool | None:
    if isinstance(reply, ChatFailed):
        return None
    words = {word for word in ("PASS", "FAIL") if word in reply.text.upper().split("\n")[0]}
    return "FAIL" in words if len(words) == 1 else None


# --- merging -------------------------------------------------------------------------------------------------------


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

    def compression(self, threshold: float, step: str) -> Estimate:
        """Estimate the labels before over after a step, with its interval over groups of threads left out in turn."""
        value = self.at(threshold).compression(step)
        left_out = [self.at(threshold, without=group).compression(step) for group in range(self.groups)]
        n = f"{len(self.phrases)} conversations with a phrase, {self.groups} groups left out in turn"
        return Estimate(value, *jackknife(left_out, value), n)
