"""The online loop: sample, judge, pair, train, reset the reference; one directory a round, resumable at every step.

`round-0` holds the policy as it came. A round's directory holds `samples.jsonl` (what the policy said), `scores.jsonl`
(what the judge said, a line a prompt, written as it comes), `policy.safetensors` (the trained weights) and, last,
`round.json`. A run that died goes on from the last line; a finished round is never done again.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
from tqdm import tqdm

from lib import TenfoldError
from lib.preference.adapters import load_policy, save_policy
from lib.preference.judging import Judge, checked_scores
from lib.preference.pairing import PairCounts, Scored, pairs
from lib.preference.prompts import Question, encoded
from lib.preference.sampling import Response, sample

Train = Callable[[Any, datasets.Dataset, int, Path], list[dict[str, float]]]


@dataclass(frozen=True)
class Sampling:
    """How a round's responses are drawn: k samples a prompt and, where `greedy`, the greedy response beside them."""

    k: int = 4
    greedy: bool = False
    max_new_tokens: int = 64
    temperature: float | int = 1.0
    batch_size: int = 96
    seed: int = 0


@dataclass(frozen=True)
class Round:
    """A finished round: its directory, scored responses, pair counts and training metrics of each step."""

    number: int
    folder: Path
    groups: list[Scored]
    counts: PairCounts
    history: list[dict[str, float]] = field(default_factory=list)


def online(
    policy: Any,
    tokenizer: Any,
    prompts: Sequence[str | Question],
    rounds: int,
    *,
    judge: Judge,
    train: Train,
    folder: Path | str,
    sampling: Sampling | None = None,
    margin: float | int = 0.0,
    extra: Callable[[Scored], dict] | None = None,
    progress: bool = True,
) -> list[Round]:
    """Improve a policy in place over equal portions of the prompts; return its rounds, finished ones read from disk.

    `train(policy, data, number, folder)` trains in place from the policy as its own reference and returns metrics;
    `extra` adds columns to the pairs. Raises TenfoldError for settings that differ from those the folder was begun
    with, fewer prompts than rounds, or one response a prompt; a judge that fails leaves all that was done.
    """
    sampling, folder = sampling or Sampling(), Path(folder)
    portions = _portions([_question(p, tokenizer) for p in prompts], rounds, sampling)
    _same_settings(folder, portions, sampling, margin)
    if not (folder / "round-0").exists():
        save_policy(policy, folder / "round-0")
    done = []
    for number, portion in enumerate(portions, start=1):
        place = folder / f"round-{number}"
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "round.json").exists():
            load_policy(policy, folder / f"round-{number - 1}")
            _run(policy, tokenizer, portion, number, place, judge, train, sampling, margin, extra, progress)
        done.append(read_round(place, number))
    load_policy(policy, folder / f"round-{rounds}")
    return done


def adopt_samples(source: Path, target: Path) -> None:
    """Give a new run the first round's samples and scores of another with the same policy and settings.

    Arms that differ in their training alone draw the same responses in their first round; `online` refuses the folder
    where the settings differ after all.
    """
    (target / "round-1").mkdir(parents=True, exist_ok=True)
    for name in ("settings.json", "round-1/samples.jsonl", "round-1/scores.jsonl"):
        shutil.copyfile(source / name, target / name)


def _run(policy, tokenizer, portion, number, place, judge, train, sampling, margin, extra, progress) -> None:
    samples = _samples(policy, tokenizer, portion, number, place, sampling, progress)
    groups = _scored(samples, judge, place, progress)
    data, counts = pairs(groups, margin=margin, extra=extra)
    history = train(policy, data, number, place)
    save_policy(policy, place)
    _write(place / "round.json", json.dumps({"counts": asdict(counts), "history": history}))


def read_round(place: Path, number: int) -> Round:
    """Finished round of a directory."""
    record = json.loads((place / "round.json").read_text(encoding="utf8"))
    samples, scores = _lines(place / "samples.jsonl"), _lines(place / "scores.jsonl")
    groups = [_group(sample, score) for sample, score in zip(samples, scores, strict=True)]
    return Round(number, place, groups, PairCounts(**record["counts"]), record["history"])


def _question(prompt: str | Question, tokenizer: Any) -> Question:
    return Question(prompt, "", tuple(encoded([prompt], tokenizer)[0])) if isinstance(prompt, str) else prompt


def _portions(prompts: list[Question], rounds: int, sampling: Sampling) -> list[list[Question]]:
    if rounds < 1 or len(prompts) < rounds:
        raise TenfoldError(f"{len(prompts)} prompts cannot be split over {rounds} rounds: give at least one each.")
    if sampling.k + sampling.greedy < 2:
        raise TenfoldError("a pair needs two responses to a prompt: sample with k of at least 2.")
    bounds = [len(prompts) * i // rounds for i in range(rounds + 1)]
    return [prompts[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]


def _same_settings(folder: Path, portions: list[list[Question]], sampling: Sampling, margin: float | int) -> None:
    prompts = [[list(q.tokens) for q in portion] for portion in portions]
    now = json.loads(json.dumps({**asdict(sampling), "margin": margin, "prompts": prompts}))
    path = folder / "settings.json"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf8"))
        changed = [name for name in now if before.get(name) != now[name]]
        if changed:
            raise TenfoldError(
                f"{folder} was begun with other settings ({', '.join(changed)}): use another folder, or the same "
                "settings."
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps(now))


def _samples(policy, tokenizer, portion, number, place, sampling, progress) -> list[dict]:
    """What the policy says to each prompt: read where it was written, else drawn."""
    path = place / "samples.jsonl"
    if not path.exists():
        ids = [list(q.tokens) for q in portion]
        options = {
            "max_new_tokens": sampling.max_new_tokens, "batch_size": sampling.batch_size, "progress": progress,
        }  # fmt: skip
        seed = sampling.seed * 10_007 + number
        drawn = sample(policy, tokenizer, ids, sampling.k, temperature=sampling.temperature, seed=seed, **options)
        likely = sample(policy, tokenizer, ids, temperature=0, **options) if sampling.greedy else [[] for _ in ids]
        rows = [
            {
                "prompt": q.text, "prompt_ids": list(q.tokens), "greedy": sampling.k if sampling.greedy else None,
                "responses": [asdict(r) for r in (*some, *one)],
            }
            for q, some, one in zip(portion, drawn, likely, strict=True)
        ]  # fmt: skip
        _write(path, "".join(json.dumps(row) + "\n" for row in rows))
    return _lines(path)


def _scored(samples: list[dict], judge: Judge, place: Path, progress: bool) -> list[Scored]:
    """Scores of every prompt's responses; each prompt's line is on disk before the next is asked for."""
    path = place / "scores.jsonl"
    done = _lines(path) if path.exists() else []
    with path.open("a", encoding="utf8") as file:
        left = samples[len(done) :]
        for row in tqdm(left, desc="judge", disable=not progress, mininterval=1.0):
            scores = checked_scores(judge, row["prompt"], [r["text"] for r in row["responses"]])
            done.append({"scores": scores})
            file.write(json.dumps(done[-1]) + "\n")
            file.flush()
    return [_group(row, score) for row, score in zip(samples, done, strict=True)]


def _group(row: dict, score: dict) -> Scored:
    responses = tuple(Response(**{**r, "tokens": tuple(r["tokens"])}) for r in row["responses"])
    return Scored(row["prompt"], tuple(row["prompt_ids"]), responses, tuple(score["scores"]), row["greedy"])


def _lines(path: Path) -> list[dict]:
    """Complete lines of a JSON-lines file; half a line that a crash left behind is cut off."""
    text = path.read_text(encoding="utf8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        _write(path, whole)
    return [json.loads(line) for line in whole.splitlines()]


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf8")
    os.replace(temporary, path)
