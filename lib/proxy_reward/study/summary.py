"""Results as the notebook shows them: agreement and gain by run, the three kinds of evaluator, the language models."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lib.core.statistics import Estimate, bootstrap, paired_difference
from lib.preference.sampling import Response
from lib.proxy_reward.evaluators import Imbalance, fit_bradley_terry, imbalance, pair_agreement
from lib.proxy_reward.generative import expected_grade
from lib.proxy_reward.study.recipes import by_prompt, comparisons
from lib.proxy_reward.study.sweeps import KnownPool, final_gain

LOW, HIGH = 0.0, 1.0  # of the expert's scores that are graded: what copies more than it answers has less than 0


def graded(scores: Float[Tensor, "*items"] | Float[np.ndarray, "*items"]) -> Imbalance:
    """Return how unevenly an expert's scores fill five grades from 0 to 1; lower ones count to the lowest."""
    return imbalance(torch.as_tensor(scores).flatten(), low=LOW, high=HIGH)


def entropy_gap(
    own: Float[Tensor, "questions k"], existing: Float[Tensor, "questions others"], *, seed: int = 0
) -> Estimate:
    """Return the entropy of the grades of own responses minus of existing answers, each over its maximum.

    The interval is over questions, which both answer.
    """

    def gap(some: Float[np.ndarray, "questions k"], others: Float[np.ndarray, "questions others"]) -> float:
        return graded(some).entropy - graded(others).entropy

    return bootstrap(own.numpy(), existing.numpy(), statistic=gap, seed=seed, unit="questions")


def grade_shares(sources: Mapping[str, Float[Tensor, "*items"]]) -> pd.DataFrame:
    """Return the share of items in every grade of each source of scores: source, from, to, share."""
    rows = []
    for source, scores in sources.items():
        shares = graded(scores).shares.tolist()
        edges = np.linspace(LOW, HIGH, len(shares) + 1)
        rows += [[source, *edges[i : i + 2], share] for i, share in enumerate(shares)]
    return pd.DataFrame(rows, columns=["source", "from", "to", "share"])


def agreements(curves: pd.DataFrame) -> dict[tuple[str, int], Float[np.ndarray, "seeds questions"]]:
    """Return agreement with the expert by strategy and calls, from rows strategy, calls, seed, question, agreement."""
    found: dict[Any, np.ndarray] = {}
    for key, part in curves.groupby(["strategy", "calls"], sort=False):
        found[key] = part.pivot(index="seed", columns="question", values="agreement").to_numpy()
    return found


def agreement_gap(
    agreement: Mapping[tuple[str, int], Float[np.ndarray, "seeds questions"]], first: str, second: str, *, skip: int = 0
) -> Float[np.ndarray, "seeds questions"]:
    """Return how much more one strategy agrees with the expert than another, mean over the budgets that both have.

    `skip` leaves out so many of the smallest, at which strategies share their labels.
    """
    shared = [calls for name, calls in agreement if name == first and (second, calls) in agreement]
    return np.mean([agreement[first, calls] - agreement[second, calls] for calls in shared[skip:]], axis=0)


def evaluators(
    own: KnownPool,
    laws: Mapping[str, Float[Tensor, "items grades"]],
    *,
    calls: int,
    seeds: int,
    seed: int = 0,
    features: Float[Tensor, "others width"],
    truth: Float[Tensor, "questions k"],
) -> pd.DataFrame:
    """Return agreement of three kinds of evaluator with the expert, at as many expert calls, on the first questions.

    Ridge and Bradley-Terry heads are fitted anew for every seed and show their mean. The generative judge is one run,
    by its laws over the grades `before` and `after` fine-tuning. Questions whose responses all tie are left out, and
    the intervals are over questions.
    """
    k = truth.shape[1]
    shaped = own.pool.ift.unflatten(0, (-1, k))

    def right(scores: Float[Tensor, " items"]) -> Float[Tensor, " questions"]:
        return pair_agreement(by_prompt(scores, k).double(), truth)

    found: dict[str, list[Tensor]] = {"ridge on scores": [], "Bradley-Terry on comparisons": []}
    for number in range(seeds):
        ridge = own.evaluator(number, calls)
        asked = comparisons(own.scores, own.order(number), budget=calls, generator=own.draws(number, 2)).pairs
        chosen, rejected = shaped[asked.prompt, asked.chosen], shaped[asked.prompt, asked.rejected]
        for values, head in zip(found.values(), (ridge, fit_bradley_terry(chosen, rejected)), strict=True):
            values.append(right(head.score(features[: truth.numel()])))
    found["generative judge, untrained"] = [right(expected_grade(laws["before"]))]
    found["generative judge, expected grade"] = [right(expected_grade(laws["after"]))]
    found["generative judge, most likely grade"] = [right(laws["after"].argmax(1).float())]
    rows = []
    for name, values in found.items():
        table = torch.stack(values)
        e = bootstrap(table[:, ~table.isnan().any(0)].numpy().mean(0), seed=seed, unit="questions")
        rows.append({"evaluator": name, "agreement": e.value, "low": e.low, "high": e.high, "seeds": len(values)})
    return pd.DataFrame(rows)


def gains(
    policies: pd.DataFrame, before: Float[Tensor, " questions"]
) -> dict[tuple[str, str, int], Float[np.ndarray, "seeds questions"]]:
    """Return the gain of the final score over the initial policy's by schedule, arm and calls."""
    keys = policies[["schedule", "arm", "calls"]].drop_duplicates().itertuples(index=False, name=None)
    return {(s, arm, calls): final_gain(policies, before, arm=arm, calls=calls, schedule=s) for s, arm, calls in keys}


def paths(policies: pd.DataFrame, before: Float[Tensor, " questions"], *, steps: Sequence[int]) -> pd.DataFrame:
    """Return gain, divergence (nats) and the expert's score of every arm after each of these steps, mean over seeds."""
    along = policies[policies["schedule"].isin([str(count) for count in steps])]
    along = along.assign(gain=along["final"].map(np.mean) - float(before.mean()))
    return along.groupby(["arm", "steps"])[["gain", "nats", "expert"]].mean().reset_index()


def cooled(
    drawn: Sequence[Sequence[Response]], scores: Float[Tensor, "questions k"], powers: Sequence[float]
) -> pd.DataFrame:
    """Return what sharpening alone gains: the law of drawn responses raised to each power, against the uniform one.

    Columns are `gain`, of the mean score, and `nats`, the divergence from the uniform law; one row a power.
    """
    log_probs = torch.tensor([[response.log_prob for response in group] for group in drawn], dtype=torch.float64)
    rows = []
    for power in powers:
        law = torch.softmax(power * log_probs, -1)
        nats = (law * (law * law.shape[1]).log()).sum(1).mean()
        rows.append({"gain": float(((law * scores).sum(1) - scores.mean(1)).mean()), "nats": float(nats)})
    return pd.DataFrame(rows)


def language_models(
    texts: Mapping[str, pd.DataFrame],
    plans: Mapping[str, tuple[list, int]],
    *,
    final: pd.DataFrame,
    expert: pd.DataFrame,
    losses: Mapping[str, float],
    seed: int = 0,
) -> pd.DataFrame:
    """Return a row for every policy: what it trained on, its scores, and its gain over the initial one by question.

    `texts` holds what each policy said, `plans` the pairs and optimiser steps of those that were trained, `final` and
    `expert` the mean score of each question's responses [questions, policies], `losses` the DPO loss on the own pairs
    in nats. The interval of the gain is over questions.
    """
    rows = []
    for name, said in texts.items():
        gain = paired_difference(final[name].to_numpy(), final["initial"].to_numpy(), seed=seed, unit="questions")
        pairs, steps = plans.get(name, ([], 0))
        rows.append(
            {
                "policy": name, "pairs": len(pairs), "steps": steps, "ROUGE-L": final[name].mean(),
                "gain": gain.value, "low": gain.low, "high": gain.high,
                "expert's score (not for verdicts)": expert[name].mean(),
                "loss on its pairs": losses.get(name, np.nan), "words": said["text"].str.split().str.len().mean(),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)
