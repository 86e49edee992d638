"""Annotators of conversations against a person's labels: zero-shot, by the guide, with another's prior."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from lib.core.statistics import Estimate, bootstrap, paired_difference
from lib.usergpt.similarity import Cut, LabelSpace, choose, indicator, main_labels
from lib.usergpt.taxonomy import OTHER, GoldLabel, Kind, agreement, labels_of

Labels = Mapping[str, GoldLabel]


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


def frequencies(labels: Sequence[GoldLabel], kind: Kind, codes: Sequence[str]) -> Float[np.ndarray, " labels"]:
    """Give the frequency of each label among labelled conversations, half a label where there is none."""
    return indicator(labels, codes, kind).mean(axis=0).clip(0.5 / len(labels))


def most_probable(
    identities: Sequence[str], probabilities: Mapping[Kind, np.ndarray], codes: Mapping[Kind, Sequence[str]]
) -> dict[str, GoldLabel]:
    """Label conversations by the most probable label of each kind; `probabilities` are [conversations, labels]."""
    main = {kind: main_labels(own, codes[kind]) for kind, own in probabilities.items()}
    rows = zip(identities, main["domains"], main["tasks"], strict=True)
    return {i: GoldLabel(i, domain, (task,)) for i, domain, task in rows}


def with_prior(
    frame: pd.DataFrame, priors: Mapping[Kind, np.ndarray], codes: Mapping[Kind, Sequence[str]]
) -> dict[str, GoldLabel]:
    """Label by what a chat model told (`id`, `told_tasks`, `told_domains`), with `priors` in place of its own.

    A prior is one row for all conversations [labels], or one for each [conversations, labels], the frame's first.
    """
    found: dict[Kind, np.ndarray] = {}
    for kind, prior in priors.items():
        told = np.stack(frame[f"told_{kind}"].tolist())
        found[kind] = reweighed(told, prior if prior.ndim == 1 else prior[: len(frame)])
    return most_probable(frame["id"].tolist(), found, codes)


def always_commonest(truth: Labels, identities: Sequence[str], codes: Mapping[Kind, Sequence[str]]) -> Labels:
    """Label every conversation by what is the commonest main label of each kind among them."""
    main = {kind: [labels_of(truth[i], kind)[0] for i in identities] for kind in codes}
    commonest = {kind: max(own, key=main[kind].count) for kind, own in codes.items()}
    return {i: GoldLabel(i, commonest["domains"], (commonest["tasks"],)) for i in identities}


def right(truth: Labels, labels: Labels, kind: Kind) -> list[float]:
    """Give 1 for each conversation whose main label is the person's, else 0."""
    return [float(labels_of(truth[i], kind)[0] == labels_of(label, kind)[0]) for i, label in labels.items()]


def lead(truth: Labels, labels: Labels, others: Labels, *, seed: int) -> Estimate:
    """Estimate how much more often main task types are right than others are, on the conversations of the first."""
    same = {i: others[i] for i in labels}
    first, second = (right(truth, side, "tasks") for side in (labels, same))
    return paired_difference(first, second, seed=seed, unit="conversations")


def quality_table(truth: Labels, annotators: Mapping[str, Labels], *, seed: int) -> pd.DataFrame:
    """Lay out how each annotator agrees with a person's labels, one row an annotator and kind."""
    rows = []
    for name, labels in annotators.items():
        for kind in ("tasks", "domains"):
            share = bootstrap(right(truth, labels, kind), seed=seed, unit="conversations")
            own = {"annotator": name, "kind": kind, "accuracy": share.value, "low": share.low, "high": share.high}
            rows.append(own | vars(agreement(truth, labels, kind)))
    return pd.DataFrame(rows)


def confusion_table(truth: Labels, labels: Labels, kind: Kind, names: Mapping[str, str]) -> pd.DataFrame:
    """Count what an annotator (columns) takes for what (rows, those that occur), by the names of the codes."""
    from sklearn.metrics import confusion_matrix

    ids, called = sorted(truth.keys() & labels.keys()), list(names.values())
    first, second = ([labels_of(side[i], kind)[0] for i in ids] for side in (truth, labels))
    table = pd.DataFrame(confusion_matrix(first, second, labels=list(names)), index=called, columns=called)
    return table.loc[table.sum(axis=1) > 0]
