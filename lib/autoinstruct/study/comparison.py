"""The experiment: candidates of a suite of tasks, rankers trained across its folds, all ways to choose side by side."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from lib.autoinstruct.candidates import Candidate, CandidateSet, collect, variants
from lib.autoinstruct.generation import WorkedTask, generate, meta_prompt
from lib.autoinstruct.labelling import METRICS, LabelledTask, Pair, label
from lib.autoinstruct.modeling import Prepared, Scorer
from lib.autoinstruct.study import baselines
from lib.autoinstruct.study.inducer import STYLES, Inducer
from lib.autoinstruct.tasks import Demonstration, Task
from lib.autoinstruct.trainer import LabelTable, fit, per_example, per_task, predict
from lib.core.chat import Chat, Decoding

Picks = Mapping[str, Int[np.ndarray, " examples"]]  # by method: the candidate picked for each example


@torch.inference_mode()
def plain_answer(model: Any, prompt: Sequence[int], *, stops: Sequence[int], max_new_tokens: int) -> list[int]:
    """Answer one prompt by `model.generate`, without sharing anything: what labelling is checked against."""
    ids = torch.tensor([prompt], device=model.device)
    options = {"do_sample": False, "max_new_tokens": max_new_tokens, "eos_token_id": list(stops)}
    made = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return [token for token in made[0, len(prompt) :].tolist() if token not in stops]


# --- candidates ---------------------------------------------------------------------------------------------------


def induced(inducer: Inducer, tasks: Sequence[Task], *, samples: int, max_new_tokens: int) -> list[list[dict]]:
    """Have the inducer write `samples` instructions of every style for each task; candidates as plain records."""
    requests = [(task.demonstrations, style) for task in tasks for style in STYLES for _ in range(samples)]
    made = [asdict(candidate) for candidate in inducer.sample(requests, max_new_tokens=max_new_tokens)]
    each = len(STYLES) * samples
    return [made[start : start + each] for start in range(0, len(made), each)]


def prompted(
    chat: Chat, tasks: Sequence[Task], teachers: Sequence[Task], *, samples: int, max_tokens: int, seed: int
) -> list[list[dict]]:
    """Have a capable model write instructions by meta-prompts that show `teachers` as worked tasks, alike in length."""
    ordered = np.array(sorted(teachers, key=lambda task: len(task.instruction)), object)
    worked = {
        f"worked-tasks-{number}": [WorkedTask(t.name, t.demonstrations[:3], t.instruction) for t in part[:3]]
        for number, part in enumerate(np.array_split(ordered, 3), 1)
    }
    options: dict[str, Any] = {"worked": worked, "samples": samples, "max_tokens": max_tokens, "seed": seed}
    made = [generate(chat, t.instruction, t.demonstrations[:3], **options) for t in tasks]
    return [[asdict(candidate) for candidate in one.candidates[1:]] for one in made]


def candidates_of(task: Task, written: Iterable[Mapping[str, str]]) -> CandidateSet:
    """Collect a task's human instruction, what was written for it, and its variants by rule."""
    own = [Candidate(task.instruction, "human", "human"), *(Candidate(**record) for record in written)]
    own += variants(task.instruction, task.demonstrations)
    return collect(own, demonstrations=task.demonstrations)


def controls_of(tasks: Sequence[Task], index: int) -> list[Candidate]:
    """Make the two controls of a task: an empty instruction, and one of another task."""
    other = tasks[(index + 1) % len(tasks)].instruction
    return [Candidate("", "control", "empty"), Candidate(other, "control", "irrelevant")]


def spread(labelled: Sequence[LabelledTask]) -> pd.DataFrame:
    """Give every candidate's mean metrics over its task's examples, with the task and the candidate's style."""
    rows = []
    for one in labelled:
        means = {name: one.metric(name).mean(0) for name in METRICS}
        for c, candidate in enumerate(one.candidates):
            own = {name: values[c] for name, values in means.items()}
            rows.append({"task": one.task.name, "style": baselines.style_name(candidate), **own})
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


def gain_by_candidates(
    labelled: Sequence[LabelledTask], scores: Sequence[np.ndarray], counts: Sequence[int], *, seed: int
) -> pd.DataFrame:
    """Give the gain over a random candidate of the ranker and of the oracle, choosing from fewer candidates."""
    rng, rows = np.random.default_rng(seed), []
    for count in counts:
        for one, own in zip(labelled, scores, strict=True):
            metric, size = one.metric("log_prob"), min(count, len(one.candidates))
            for who, values in {"ranker": own, "oracle": metric}.items():
                gain = baselines.expected_best_of(values, metric, count=size, rng=rng) - metric.mean()
                rows.append({"count": count, "who": who, "task": one.task.name, "gain": gain})
    return pd.DataFrame(rows)


def gain_by_training(
    make: Callable[[], Scorer],
    tables: Sequence[LabelTable],
    parts: Sequence[Sequence[str]],
    prepared: Prepared,
    jobs: Iterable[tuple[int, int]],
    *,
    epochs: int,
    seed: int,
    reseed: Callable[[str], None],
) -> pd.DataFrame:
    """Give the gain over a random candidate of a ranker trained on fewer tasks; a job is (tasks, number of the run)."""
    rows = []
    for count, run in jobs:
        for part in parts:
            reseed(f"head {count} {run}")
            seen = [t for t in tables if t.task not in part]
            drawn = np.random.default_rng(seed + run).permutation(len(seen))[: min(count, len(seen))]
            scorer, unseen = make(), [t for t in tables if t.task in part]
            options: dict[str, Any] = {"prepared": prepared, "epochs": epochs, "lr": 2e-3, "seed": run}
            fit(scorer, [seen[i] for i in drawn], progress=False, **options)
            for table, values in zip(unseen, predict(scorer, unseen, prepared=prepared), strict=True):
                picked = np.take_along_axis(table.metric, per_example(values)[:, None], 1)
                rows.append(
                    {"count": count, "run": run, "task": table.task, "gain": picked.mean() - table.metric.mean()}
                )
    return pd.DataFrame(rows)


# --- other ways to choose, and to write ----------------------------------------------------------------------------


def judgements(
    model: Any, tokenizer: Any, task: Task, candidates: Sequence[Candidate], *, shown: int, batch_rows: int
) -> pd.DataFrame:
    """Judge candidates without a ranker: `validated` on `shown` demonstrations, and `asked` of the model itself."""
    few = task.demonstrations[:shown]
    options: dict[str, Any] = {"batch_rows": batch_rows, "progress": False}
    validated = baselines.cross_validate(model, tokenizer, candidates, few, **options)
    asked = baselines.ask_the_model(model, tokenizer, candidates, few)
    return pd.DataFrame({"task": task.name, "validated": validated, "asked": asked})


def on_the_fly(writer: Inducer | Chat, where: Sequence[tuple[Task, str]], *, max_new_tokens: int) -> list[str]:
    """Write one instruction for each (task, input), from the task's demonstrations or its own instruction."""
    if isinstance(writer, Inducer):
        requests = [((*task.demonstrations[:3], Demonstration(text, "")), STYLES[0]) for task, text in where]
        return [candidate.text for candidate in writer.sample(requests, max_new_tokens=max_new_tokens)]
    asked = [meta_prompt("one-sentence", task.instruction, [Demonstration(text, "?")]) for task, text in where]
    decoding = Decoding(max_tokens=max_new_tokens, seed=0)
    return [writer.complete(prompt, decoding).text for prompt in asked]


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
    batch_rows: int,
) -> pd.DataFrame:
    """Search by APE from what a model wrote for each task: the best after each round, with its score."""

    def score(index: int, candidates: Sequence[Candidate]) -> np.ndarray:
        few = tasks[index].demonstrations[:shown]
        return baselines.cross_validate(model, tokenizer, candidates, few, batch_rows=batch_rows, progress=False)

    pools = [[c for c in own if c.origin in baselines.GENERATED] for own in sets]
    demonstrations = [task.demonstrations for task in tasks]
    searches = baselines.search(pools, demonstrations, score, paraphrase, rounds=rounds, keep=keep)
    return pd.DataFrame(
        {"task": t, "round": number, "score": one.scores[c], **asdict(one.candidates[c])}
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

    `scores` are the rankers' (by objective, and `frozen head`), `judged` what `judgements` gave, `training` the tables
    of the tasks on which the fixed style is chosen.
    """
    metric, everywhere = one.metric("log_prob"), np.ones(len(one.task.examples), dtype=int)
    validated, asked = judged["validated"].to_numpy(), judged["asked"].to_numpy()
    return {
        "oracle": metric.argmax(-1),
        "ranker": per_example(scores["listwise"]),
        "ranker, per task": per_task(scores["listwise"]),
        "ranker, pointwise": per_example(scores["pointwise"]),
        "ranker, binary": per_example(scores["binary"]),
        "ranker, frozen head": per_example(scores["frozen head"]),
        "one style": baselines.with_style(one.table("log_prob"), baselines.best_style(training)),
        "cross-validation": everywhere * int(validated.argmax()),
        "APE, no rounds": everywhere * baselines.ape(one.candidates, validated),
        "asked": everywhere * int(asked.argmax()),
        "human": everywhere * one.human,
        "worst": metric.argmin(-1),
    }


def outcomes(
    labelled: Sequence[LabelledTask], picks: Sequence[Picks], searched: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """Give what every method reaches in each metric, one row a metric and task; `searched` holds `tried` by method."""
    frames = []
    for name in METRICS:
        searched_means = {method: frame.groupby("task")[name].mean() for method, frame in searched.items()}
        rows = [
            {method: one.value(pick, name) for method, pick in own.items()}
            | {control: one.control(control, name).mean() for control in one.controls}
            | {method: means.get(index, np.nan) for method, means in searched_means.items()}
            | {"random": one.metric(name).mean(-1).mean()}
            for index, (one, own) in enumerate(zip(labelled, picks, strict=True))
        ]
        frames.append(pd.DataFrame(rows).assign(metric=name))
    return pd.concat(frames)


def shot_gains(
    zero_shot: Sequence[LabelledTask], few_shot: Sequence[LabelledTask], picks: Sequence[Picks], name: str
) -> pd.DataFrame:
    """Give gains over the human instruction on the same examples, zero-shot and few-shot, by the zero-shot choices."""
    rows = []
    for index, one in enumerate(few_shot):
        count = len(one.task.examples)
        for shots, source in {"zero-shot": zero_shot[index], "few-shot": one}.items():
            metric = source.metric(name)[:count]
            values = {
                method: np.take_along_axis(metric, picks[index][method][:count, None], 1).mean()
                for method in ("ranker", "one style", "asked", "cross-validation")
            }
            values |= {"random": metric.mean(), "oracle": metric.max(-1).mean(), "worst": metric.min(-1).mean()}
            values["empty"] = source.control("empty", name)[:count].mean()
            base = metric[:, one.human].mean()
            rows += [{"task": index, "shots": shots, "method": m, "gain": v - base} for m, v in values.items()]
    return pd.DataFrame(rows)


def choices(labelled: Sequence[LabelledTask], picks: Sequence[Picks]) -> pd.DataFrame:
    """List the ranker's choices with their gain over the human instruction, largest first.

    `by a model` tells whether a language model wrote the choice, `given away` whether it spells out an accepted answer
    that the human instruction does not.
    """
    rows = []
    for one, own in zip(labelled, picks, strict=True):
        outputs = one.frame.pivot(index="example", columns="candidate", values="output")
        human, metric = one.candidates[one.human].text, one.metric("log_prob")
        for e, (example, c) in enumerate(zip(one.task.examples, own["ranker"], strict=True)):
            chosen = one.candidates[c]
            rows.append(
                {
                    "task": one.task.name, "input": example.input[:80], "gold": example.answers[0],
                    "chosen": f"[{baselines.style_name(chosen)}] {chosen.text}", "answer": outputs.iloc[e, c],
                    "human": one.task.instruction, "answer to human": outputs.iloc[e, one.human],
                    "gain": metric[e, c] - metric[e, one.human], "by a model": chosen.origin in baselines.GENERATED,
                    "given away": _stands_in(chosen.text, example.answers) and not _stands_in(human, example.answers),
                }
            )  # fmt: skip
    return pd.DataFrame(rows).sort_values("gain", ascending=False)


def _stands_in(text: str, answers: Sequence[str]) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) for answer in answers)
