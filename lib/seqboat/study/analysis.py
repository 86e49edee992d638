"""What the notebook reads off its trained models: scores and activation, how far they look, and what a step costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.core.statistics import Estimate, over_runs, ratio_of_pairs
from lib.seqboat.study import probe
from lib.seqboat.study.corpus import Examples

Folders = Mapping[tuple[Any, ...], Path]  # of trained models, by what tells them apart


def tables(folders: Folders, name: str, keys: Sequence[str]) -> pd.DataFrame:
    """Return the table `name` of every model's folder, one below the other, with columns `keys` that tell whose."""
    frames = [
        pd.read_csv(folder / f"{name}.csv").assign(**dict(zip(keys, key, strict=True)))
        for key, folder in folders.items()
    ]
    return pd.concat(frames, ignore_index=True)


def bits(folder: Path) -> pd.Series:
    """Return a model's loss on each held-out row in bits (a byte of language)."""
    return pd.read_csv(folder / "scores.csv")["loss"] / np.log(2)


def majority(examples: Examples) -> float:
    """Return the share of the most frequent answer among those that are scored."""
    assert examples.labels is not None
    asked = examples.labels[examples.labels >= 0]
    return float(asked.bincount().max()) / len(asked)


class HeldOut:
    """What models in `folders`, by task, kind and seed, scored on held-out rows.

    `scores` has a row for each model and held-out row: `loss` in nats and `right`, the share of right answers.
    """

    def __init__(self, folders: Folders) -> None:
        self.scores = tables(folders, "scores", ("task", "kind", "seed"))

    def by_seed(self, task: str, kind: str) -> Float[np.ndarray, "seeds rows"]:
        """Return what is measured of each row: bits a byte of language, else the share of right answers."""
        part = self.scores[(self.scores["task"] == task) & (self.scores["kind"] == kind)]
        if task == "language":
            return part.pivot(index="seed", columns="row", values="loss").to_numpy() / np.log(2)
        return part.pivot(index="seed", columns="row", values="right").to_numpy()

    def estimate(self, task: str, kind: str, *, seed: int = 0) -> Estimate:
        """Return its mean with an interval over seeds and rows from three seeds on, else over rows alone."""
        return over_runs(self.by_seed(task, kind), items="rows", seed=seed)

    def by_length(self, task: str, lengths: Int[np.ndarray, " rows"]) -> pd.DataFrame:
        """Return the share of `right` answers of each `kind` on rows of each `length` in tokens, by `seed`."""
        of_task = self.scores[self.scores["task"] == task]
        seeds = sorted(of_task["seed"].unique())
        return pd.DataFrame(
            {"kind": kind, "length": length, "seed": seed, "right": right}
            for kind in of_task["kind"].unique()
            for length in np.unique(lengths)
            for seed, right in zip(seeds, self.by_seed(task, kind)[:, lengths == length].mean(1), strict=True)
        )


def activation(folders: Folders) -> pd.DataFrame:
    """Return the `rate` of tokens that SeqBoat's layers activate, by `task`, `seed`, `layer` and `step`.

    `share` is that of the training steps done: 0 before them, 1 after the last.
    """
    own = {(task, seed): folder for (task, kind, seed), folder in folders.items() if kind == "seqboat"}
    rates = tables(own, "rates", ("task", "seed"))
    return rates.assign(share=rates["step"] / rates.groupby(["task", "seed"])["step"].transform("max"))


def outcomes(folders: Folders, keys: Sequence[str]) -> pd.DataFrame:
    """Return the `rate` of active tokens (mean over layers) and the `accuracy` that each model ended with."""
    rows = []
    for key, folder in folders.items():
        rates, scores = (pd.read_csv(folder / f"{name}.csv") for name in ("rates", "scores"))
        last = rates[rates["step"] == rates["step"].max()]
        found = {"rate": last["rate"].mean(), "accuracy": scores["right"].mean()}
        rows.append(dict(zip(keys, key, strict=True)) | found)
    return pd.DataFrame(rows)


def activation_gap(one: Float[np.ndarray, "seeds numbers"], other: Float[np.ndarray, "seeds numbers"]) -> float:
    """Return the mean distance of two tasks' activation, less that of two seeds of one task (mean of both tasks)."""
    return _spread(one, other) - (_spread(one, one) + _spread(other, other)) / 2


def _spread(one: Float[np.ndarray, "seeds numbers"], other: Float[np.ndarray, "seeds numbers"]) -> float:
    """Mean distance over all pairs that are not the same seed of one task."""
    distance = np.abs(one[:, None] - other).mean(-1)
    return distance.mean() if one is not other else distance[~np.eye(len(one), dtype=bool)].mean()


def spans(model: Any, texts: Int[Tensor, "texts tokens"]) -> tuple[pd.DataFrame, pd.Series]:
    """Return how far back each layer of a causal SeqBoat looks, and by text where its window ends over its length.

    The frame has the `median`, 5 % (`low`) and 95 % (`high`) of the queries whose window is full, in tokens: `of`
    `reach`, where the window ends, and of `distance`, looked at on average. The series holds the mean reach of each
    text, over layers too, in lengths of the window; texts without a full window are left out.
    """
    by_text = [probe.attention_spans(model, text.unsqueeze(0)) for text in texts]
    window, rows, reaches = model.config.window, [], {}
    for i, layer in enumerate(zip(*by_text, strict=True)):
        reaches[i] = [float(found.reach.mean()) / window for found in layer]  # NaN where no window was full
        for of in ("reach", "distance"):
            values = torch.cat([getattr(found, of) for found in layer]).cpu().numpy()
            if len(values):
                low, middle, high = (float(np.quantile(values, q)) for q in (0.05, 0.5, 0.95))
                rows.append({"layer": f"layer {i + 1}", "of": of, "median": middle, "low": low, "high": high})
    return pd.DataFrame(rows), pd.DataFrame(reaches).mean(axis=1).dropna()


@torch.inference_mode()
def batch_dependence(model: Any, examples: Examples) -> float:
    """Return the largest difference of any row's logits alone and in one batch with the others."""
    rows = torch.arange(len(examples))
    together, *alone = (_logits(model, examples, some) for some in (rows, *rows.split(1)))
    return float((together - torch.cat(alone)).abs().max())


def _logits(model: Any, examples: Examples, rows: Tensor) -> Tensor:
    device = next(model.parameters()).device
    return model(**{k: v.to(device) for k, v in examples.batch(rows).items() if k != "labels"}).logits


def with_and_without(scored: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """Return bits and accuracy by task with the attention unit on and off, and the bits it saves; mean over seeds."""
    by_state = scored.pivot(index=["task", "seed"], columns="unit", values=["bits", "right"])
    saved = pd.Series(by_state["bits", "off"] - by_state["bits", "on"])
    table = pd.DataFrame(by_state.groupby("task").mean())
    table.columns = [f"{'bits' if of == 'bits' else 'accuracy'}, unit {state}" for of, state in table.columns]
    return table, pd.Series(saved.groupby("task").mean())


def after_warm_up(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of steps after the first `pair`, which warms up; all where there is no other."""
    return pd.DataFrame(steps[(steps["pair"] > 0) | (steps["pair"].max() == 0)])


def median_step(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the median `seconds` and `mebibytes` of a step, by `layer` and `tokens`."""
    found = after_warm_up(steps).groupby(["layer", "tokens"], sort=False, as_index=False)
    return pd.DataFrame(found[["seconds", "mebibytes"]].median())


def trade_off(steps: pd.DataFrame, folders: Folders) -> pd.DataFrame:
    """Return median `ms` and `mebibytes` of a step, and held-out `bits`, by `kind` and `window`."""
    costs: dict[str, Any] = {"ms": ("seconds", lambda s: 1e3 * s.median()), "mebibytes": ("mebibytes", "first")}
    found = after_warm_up(steps).groupby(["kind", "window"], as_index=False).agg(**costs)
    found["bits"] = [bits(folders[job]).mean() for job in zip(found["kind"], found["window"], strict=True)]
    return found


def exponent(steps: pd.DataFrame, short: int, long: int) -> dict[str, Any]:
    """Return the exponent of `seconds` in `tokens` between two lengths timed in pairs, as arguments of a claim."""
    seconds = after_warm_up(steps).pivot(index="pair", columns="tokens", values="seconds")
    growth = ratio_of_pairs(seconds[long].to_numpy(), seconds[short].to_numpy())
    power, *ends = np.log([growth.value, *growth.ci]) / np.log(long / short)
    return {"estimate": power, "ci": tuple(ends), "n": growth.n}


def ratio_of_kinds(steps: pd.DataFrame, kind: str, other: str, window: int) -> Estimate:
    """Return the ratio of two kinds' `seconds` a step, in pairs, at a window."""
    seconds = after_warm_up(steps).pivot(index="pair", columns=["kind", "window"], values="seconds")
    return ratio_of_pairs(seconds[kind, window].to_numpy(), seconds[other, window].to_numpy())
