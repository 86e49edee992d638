"""The experiment: candidates of a suite of tasks, rankers trained across its folds, all ways to choose side by side."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from lib.autoinstruct.candidates import Candidate, CandidateSet, gives_away, shows, variants
from lib.autoinstruct.labelling import METRICS, LabelledTask, Pair, label
from lib.autoinstruct.modeling import Prepared, Scorer
from lib.autoinstruct.study import baselines
from lib.autoinstruct.tasks import Example, Task
from lib.autoinstruct.trainer import LabelTable, fit, per_example, per_task, predict

Picks = Mapping[str, Int[np.ndarray, " examples"]]  # by method: the candidate picked for each example


@torch.inference_mode()
def plain_answer(model: Any, prompt: Sequence[int], *, stops: Sequence[int], max_new_tokens: int) -> list[int]:
    """Answer one prompt by `model.generate`, without sharing anything: what labelling is checked against."""
    ids = torch.tensor([prompt], device=model.device)
    options = {"do_sample": False, "max_new_tokens": max_new_tokens, "eos_token_id": list(stops)}
    made = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return [token for token in made[0, len(prompt) :].tolist() if token not in stops]


# --- candidates ---------------------------------------------------------------------------------------------------


def zero_shot_pool(task: Task, written: CandidateSet) -> CandidateSet:
    """Leave out of what was written for a task what a zero-shot prompt must not hold.

    That is an explanation of the demonstrations (the style, or both texts of one), and the answer to an example.
    """
    kept, refused = [], Counter(written.refused)
    for candidate in written:
        if candidate.origin == "human":
            kept.append(candidate)
        elif candidate.style == "use-example" or shows(candidate.text, task.demonstrations):
            refused["shows a demonstration"] += 1
        elif any(named(candidate.text, task, example) for example in task.examples):
            refused["gives an answer away"] += 1
        else:
            kept.append(candidate)
    return CandidateSet(tuple(kept), dict(refused))


def named(text: str, task: Task, example: Example) -> bool:
    """Tell whether an instruction names an example's gold answer alone, where the human instruction does not."""
    gold, others = example.answers[0], task.others(example)
    return gives_away(text, gold, others) and not gives_away(task.instruction, gold, others)


CONTROLS = ("empty", "irrelevant", "rule")


def controls_of(tasks: Sequence[Task], index: int) -> list[Candidate]:
    """Make a task's controls: an empty instruction, another task's, and the human one with a line on the answer's form
    that a rule reads off the demonstrations.
    """
    task = tasks[index]
    texts = "", tasks[(index + 1) % len(tasks)].instruction, variants(task.instruction, task.demonstrations)[0].text
    return [Candidate(text, "control", name) for text, name in zip(texts, CONTROLS, strict=True)]


def spread(labelled: Sequence[LabelledTask]) -> pd.DataFrame:
    """Give every candidate's mean metrics over its task's examples, with the task and the candidate's style."""
    rows = []
    for one in labelled:
        means = {name: one.metric(name).mean(0) for name in METRICS}
        for c, candidate in enumerate(one.candidates):
            own = {name: values[c] for name, values in means.items()}
            rows.append({"task": one.task.name, "style": candidate.style, **own})
    return pd.DataFrame(rows)


# --- rankers ------------------------------------------------------------------------------------------------------


def cross_fit(
    make: Callable[[], Scorer],
    tables: Sequence[LabelTable],
    parts: Sequence[Sequence[str]],
    prepared: Prepared,
    settings: Iterable[dict[str, Any]],
    *,
    reseed: Callable[[str], None],
) -> pd.DataFrame:
    """Score every table by rankers trained on the other parts' tasks, for each `settings` of `fit`.

    One row a setting (`number`), task, example and candidate.
    """
    frames = []
    for number, options in enumerate(settings):
        for part in parts:
            reseed(f"ranker {options['seed']}")
            scorer = make()
            fit(scorer, [t for t in tables if t.task not in part], prepared=prepared, progress=False, **options)
            unseen = [t for t in tables if t.task in part]
            for table, values in zip(unseen, predict(scorer, unseen, prepared=prepared), strict=True):
                places = [[number], [table.task], *map(range, values.shape)]
                at = pd.MultiIndex.from_product(places, names=["number", "task", "example", "candidate"])
                frames.append(pd.DataFrame({"score": values.ravel()}, index=at))
    return pd.concat(frames).reset_index()


def score_tables(frame: pd.DataFrame, tables: Sequence[LabelTable]) -> list[Float[np.ndarray, "examples candidates"]]:
    """Lay out scores of `cross_fit` as one array a table, the mean over settings."""
    shaped = {
        task: part.pivot_table(index="example", columns="candidate", values="score", aggfunc="mean").to_numpy()
        for task, part in frame.groupby("task")
    }
    return [shaped[table.task] for table in tables]


# --- other ways to choose, and to write ----------------------------------------------------------------------------


def judgements(
    model: Any,
    tokenizer: Any,
    task: Task,
    candidates: Sequence[Candidate],
    *,
    shown: int,
    max_new_tokens: int,
    batch_rows: int,
) -> pd.DataFrame:
    """Judge candidates without a ranker: `validated` on `shown` demonstrations, and `asked` of the model itself."""
    options: dict[str, Any] = {"shown": shown, "max_new_tokens": max_new_tokens, "batch_rows": batch_rows}
    validated = baselines.cross_validate(model, tokenizer, task, candidates, **options)
    asked = baselines.ask_the_model(model, tokenizer, candidates, task.demonstrations[:shown])
    return pd.DataFrame({"task": task.name, "validated": validated, "asked": asked})


def ape_winners(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[Task],
    sets: Sequence[Iterable[Candidate]],
    paraphrase: baselines.Paraphraser,
    *,
    rounds: int,
    keep: int,
    shown: int,
    max_new_tokens: int,
    batch_rows: int,
) -> pd.DataFrame:
    """Search by APE from what a model wrote for each task: the best after each round, with its score."""

    def score(index: int, candidates: Sequence[Candidate]) -> np.ndarray:
        options: dict[str, Any] = {"shown": shown, "max_new_tokens": max_new_tokens, "batch_rows": batch_rows}
        return baselines.cross_validate(model, tokenizer, tasks[index], candidates, **options)

    pools = [[c for c in own if c.origin == "model"] for own in sets]
    demonstrations = [task.demonstrations for task in tasks]
    searches = baselines.search(pools, demonstrations, score, paraphrase, rounds=rounds, keep=keep)
    return pd.DataFrame(
        {"task": tasks[t].name, "round": number, "score": one.scores[c], **asdict(one.candidates[c])}
        for t, one in enumerate(searches)
        for number in range(rounds + 1)
        for c in [one.best(after=number)]
    )


def tried(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    tasks: Sequence[Any],
    *,
    max_new_tokens: int,
    batch_rows: int = 64,
) -> pd.DataFrame:
    """Try one instruction on one example a row; gives its metrics beside the task that the row belongs to."""
    labels = label(model, tokenizer, pairs, max_new_tokens=max_new_tokens, batch_rows=batch_rows)
    rows = [{name: getattr(one, name) for name in METRICS} for one in labels]
    return pd.DataFrame(rows, columns=list(METRICS)).assign(task=list(tasks))


# --- what the ways are worth ---------------------------------------------------------------------------------------


def picks_of(
    one: LabelledTask, scores: Mapping[str, np.ndarray], judged: pd.DataFrame, training: Sequence[LabelTable]
) -> Picks:
    """Pick a candidate for each example of a task by every method.

    `scores` are the rankers' by objective, `judged` what `judgements` gave, `training` the tables of the tasks on which
    the style is chosen.
    """
    everywhere = np.ones(len(one.task.examples), dtype=int)
    style = baselines.with_style(one.candidates, baselines.best_style(training))
    return {
        "ranker": per_example(scores["listwise"]),
        "ranker, per task": per_task(scores["listwise"]),
        "ranker, pointwise": per_example(scores["pointwise"]),
        "ranker, binary": per_example(scores["binary"]),
        "majority style": everywhere * style,
        "cross-validation": everywhere * int(judged["validated"].to_numpy().argmax()),
        "asked": everywhere * int(judged["asked"].to_numpy().argmax()),
        "human": everywhere * one.human,
    }


def outcomes(
    labelled: Sequence[LabelledTask], picks: Sequence[Picks], searched: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """Give what every method reaches in each metric, one row a metric and task; `searched` holds `tried` by method.

    The oracle and the worst look at the very metric that is shown.
    """
    rows = []
    for name in METRICS:
        means = {method: frame.groupby("task")[name].mean() for method, frame in searched.items()}
        for one, own in zip(labelled, picks, strict=True):
            metric = one.metric(name)
            row = {"metric": name, "task": one.task.name, "random": metric.mean()}
            row |= {"oracle": metric.max(-1).mean(), "worst": metric.min(-1).mean()}
            row |= {method: one.value(pick, name) for method, pick in own.items()}
            row |= {control: one.control(control, name).mean() for control in one.controls}
            rows.append(row | {method: values.get(one.task.name, np.nan) for method, values in means.items()})
    return pd.DataFrame(rows)


def shot_gains(
    zero_shot: Sequence[LabelledTask], few_shot: Sequence[LabelledTask], picks: Sequence[Picks], name: str
) -> pd.DataFrame:
    """Give gains over the human instruction on the same examples, zero-shot and few-shot, by the zero-shot choices."""
    rows = []
    for whole, few, own in zip(zero_shot, few_shot, picks, strict=False):
        count = len(few.task.examples)
        for shots, metric in {"zero-shot": whole.metric(name)[:count], "few-shot": few.metric(name)}.items():
            values = {
                method: np.take_along_axis(metric, own[method][:count, None], 1).mean()
                for method in ("ranker", "majority style", "asked", "cross-validation")
            }
            values |= {"random": metric.mean(), "oracle": metric.max(-1).mean(), "worst": metric.min(-1).mean()}
            base = metric[:, whole.human].mean()
            rows += [{"task": few.task.name, "shots": shots, "method": m, "gain": v - base} for m, v in values.items()]
    return pd.DataFrame(rows)


def choices(labelled: Sequence[LabelledTask], picks: Sequence[Picks], name: str = "choice") -> pd.DataFrame:
    """List the ranker's choices with their gain over the human instruction in a metric, largest first."""
    rows = []
    for one, own in zip(labelled, picks, strict=True):
        outputs = one.frame.pivot(index="example", columns="candidate", values="output")
        metric = one.metric(name)
        for e, (example, c) in enumerate(zip(one.task.examples, own["ranker"], strict=True)):
            chosen = one.candidates[c]
            rows.append(
                {
                    "task": one.task.name, "input": example.input[:80], "gold": example.answers[0],
                    "origin": chosen.origin, "style": chosen.style, "chosen": chosen.text,
                    "answer": outputs.iloc[e, c], "human": one.task.instruction,
                    "answer to human": outputs.iloc[e, one.human], "gain": metric[e, c] - metric[e, one.human],
                }
            )  # fmt: skip
    return pd.DataFrame(rows).sort_values("gain", ascending=False)
