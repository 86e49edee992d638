"""The online loop: sample, judge, pair, train, reset the reference; one directory a round, resumable at every step.

`round-0` holds the policy as it came. A round's directory holds `samples.json` (what the policy said), `scores.json`
(what the judge said; until all is said, a journal that takes each prompt's scores as they come), `policy.safetensors`
(the trained weights) and, last, `round.json`. A run that died goes on from there; a finished round is never done again.
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
from lib.core.store import Journal
from lib.preference.adapters import load_policy, save_policy
from lib.preference.judges import Judge, checked_scores
from lib.preference.pairing import PairCounts, Scored, pairs
from lib.preference.sampling import Question, Response, encoded, sample

Train = Callable[[Any, datasets.Dataset, int, Path], list[dict[str, float]]]
Extra = Callable[[Scored], dict]


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
    extra: Extra | None = None,
    progress: bool = True,
) -> list[Round]:
    """Improve a policy in place over equal portions of the prompts; return its rounds, finished ones read from disk.

    `train(policy, data, number, folder)` trains in place from the policy as its own reference and returns metrics;
    `extra` adds columns to the pairs. Raises ValueError for fewer prompts than rounds or one response a prompt, and
    TenfoldError for a folder that was begun with other settings; a judge that fails leaves all that was done.
    """
    sampling, folder = sampling or Sampling(), Path(folder)
    asked = [q if isinstance(q, Question) else Question(q, "", tuple(encoded([q], tokenizer)[0])) for q in prompts]
    if rounds < 1 or len(asked) < rounds:
        raise ValueError(f"{len(asked)} prompts cannot be split over {rounds} rounds: give at least one each")
    if sampling.k + sampling.greedy < 2:
        raise ValueError("a pair needs two responses to a prompt: sample with k of at least 2")
    bounds = [len(asked) * i // rounds for i in range(rounds + 1)]
    portions = [asked[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    _refuse_other_settings(folder, portions, sampling, margin)
    if not (folder / "round-0").exists():
        save_policy(policy, folder / "round-0")
    loop = _Loop(policy, tokenizer, judge, train, sampling, margin, extra, progress)
    finished = []
    for number, portion in enumerate(portions, start=1):
        place = folder / f"round-{number}"
        if not (place / "round.json").exists():
            load_policy(policy, folder / f"round-{number - 1}")
            loop.run(portion, number, place)
        finished.append(read_round(place, number))
    load_policy(policy, folder / f"round-{rounds}")
    return finished


def adopt_samples(source: Path, target: Path) -> None:
    """Give a new run the first round's samples and scores of another with the same policy and settings.

    Runs that differ in their training alone draw the same responses in their first round; `online` refuses the folder
    where the settings differ after all.
    """
    (target / "round-1").mkdir(parents=True, exist_ok=True)
    for name in ("settings.json", "round-1/samples.json", "round-1/scores.json"):
        shutil.copyfile(source / name, target / name)


def read_round(place: Path, number: int) -> Round:
    """Read a finished round from its directory."""
    record = _read(place / "round.json")
    groups = _groups(_read(place / "samples.json"), _read(place / "scores.json"))
    return Round(number, place, groups, PairCounts(**record["counts"]), record["history"])


@dataclass(frozen=True)
class _Loop:
    """What is the same in all rounds of a run."""

    policy: Any
    tokenizer: Any
    judge: Judge
    train: Train
    sampling: Sampling
    margin: float | int
    extra: Extra | None
    progress: bool

    def run(self, portion: list[Question], number: int, place: Path) -> None:
        """Do one round, or what is left of it."""
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "samples.json").exists():
            _write(place / "samples.json", self._samples(portion, number))
        samples = _read(place / "samples.json")
        if not (place / "scores.json").exists():
            self._judge(samples, place)
        groups = _groups(samples, _read(place / "scores.json"))
        data, counts = pairs(groups, margin=self.margin, extra=self.extra)
        history = self.train(self.policy, data, number, place)
        save_policy(self.policy, place)
        _write(place / "round.json", {"counts": asdict(counts), "history": history})

    def _samples(self, portion: list[Question], number: int) -> list[dict]:
        """Return what the policy says to each prompt."""
        how, ids = self.sampling, [list(q.tokens) for q in portion]
        options = {"max_new_tokens": how.max_new_tokens, "batch_size": how.batch_size, "progress": self.progress}
        seed = how.seed * 10_007 + number
        drawn = sample(self.policy, self.tokenizer, ids, how.k, temperature=how.temperature, seed=seed, **options)
        likely = [[] for _ in ids]
        if how.greedy:
            likely = sample(self.policy, self.tokenizer, ids, temperature=0, **options)
        return [
            {
                "prompt": q.text,
                "prompt_ids": list(q.tokens),
                "greedy": how.k if how.greedy else None,
                "responses": [asdict(r) for r in (*some, *one)],
            }
            for q, some, one in zip(portion, drawn, likely, strict=True)
        ]

    def _judge(self, samples: list[dict], place: Path) -> None:
        """Write every prompt's scores; each prompt's are on disk before the next is asked for."""
        with Journal(place / "scores.sqlite") as journal:
            waiting = [number for number in range(len(samples)) if str(number) not in journal]
            for number in tqdm(waiting, desc="judge", disable=not self.progress, mininterval=1.0):
                texts = [response["text"] for response in samples[number]["responses"]]
                journal.put(str(number), checked_scores(self.judge, samples[number]["prompt"], texts))
            _write(place / "scores.json", [journal[str(number)] for number in range(len(samples))])
        (place / "scores.sqlite").unlink()


def _refuse_other_settings(
    folder: Path, portions: list[list[Question]], sampling: Sampling, margin: float | int
) -> None:
    prompts = [[list(q.tokens) for q in portion] for portion in portions]
    now, path = {**asdict(sampling), "margin": margin, "prompts": prompts}, folder / "settings.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, now)
    before = _read(path)
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        raise TenfoldError(
            f"{folder} was begun with other settings ({', '.join(changed)}): use another folder, or the same settings."
        )


def _groups(samples: list[dict], scores: list[list[float]]) -> list[Scored]:
    return [
        Scored(
            row["prompt"],
            tuple(row["prompt_ids"]),
            tuple(Response(**{**response, "tokens": tuple(response["tokens"])}) for response in row["responses"]),
            tuple(given),
            row["greedy"],
        )
        for row, given in zip(samples, scores, strict=True)
    ]


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf8"))


def _write(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(value), encoding="utf8")
    os.replace(temporary, path)
