"""The online loop: sample, judge, pair, train, reset the reference; one directory a round, resumable at every step.

`round-0` holds the policy as it came. A round's directory holds `samples.json` (what the policy said), `scores.json`
(what the judge said, by the key of a prompt and its responses; until all is said, a journal that takes each prompt's
scores as they come), `policy.safetensors` (the trained weights) and, last, `round.json`. Every file is whole or not
there, so a run that was killed goes on from there, by any number of processes; a finished round is never done again.

Under `accelerate launch` or `torchrun` the processes of one machine share the sampling and the judging, train together,
and read what the first of them wrote: every prompt is answered and judged once, and all see the same.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import datasets
import torch
import torch.distributed as dist

from lib import TenfoldError
from lib.core.store import Journal, key_of
from lib.preference.adapters import load_policy, policy_key, save_policy
from lib.preference.judges import JudgeFailed, ask_all, checked_scores, refuse_failures
from lib.preference.pairing import PairCounts, Scored, pairs
from lib.preference.sampling import Question, Response, encoded, sample

Train = Callable[[Any, datasets.Dataset, int, Path], list[dict[str, float]]]
Extra = Callable[[Scored], dict]
Result = TypeVar("Result")


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


class Processes:
    """The processes that run a loop together, and what they agree on; alone where there is no group."""

    def __init__(self) -> None:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
            from accelerate import PartialState

            PartialState(cpu=not torch.cuda.is_available())  # joins the group that the launcher describes
        grouped = dist.is_available() and dist.is_initialized()
        self.rank, self.count = (dist.get_rank(), dist.get_world_size()) if grouped else (0, 1)

    def together(self, act: Callable[[], Result]) -> list[Result]:
        """Act in every process and return the results of all by rank; where one raises, all do."""
        value, error = None, None
        try:
            value = act()
        except BaseException as raised:
            error = raised
        found: list[Any] = [(value, None if error is None else f"{type(error).__name__}: {error}")]
        if self.count > 1:
            found = found * self.count
            dist.all_gather_object(found, found[0])
        if error is not None:
            raise error
        for rank, (_, failure) in enumerate(found):
            if failure is not None:
                raise TenfoldError(f"process {rank} failed, so all stop ({failure}): mend it, and run again.")
        return [value for value, _ in found]

    def first(self, act: Callable[[], Result]) -> Result:
        """Act in the first process alone and return its result in all."""
        return self.together(lambda: act() if self.rank == 0 else None)[0]  # type: ignore[return-value]


def online(
    policy: Any,
    tokenizer: Any,
    prompts: Sequence[str | Question],
    rounds: int = 3,
    *,
    judge: Any,
    train: Train,
    folder: Path | str,
    sampling: Sampling | None = None,
    margin: float | int = 0.0,
    unjudged: float | int = 0.0,
    extra: Extra | None = None,
    progress: bool = True,
) -> list[Round]:
    """Improve a policy in place over equal portions of the prompts; return its rounds, finished ones read from disk.

    `train(policy, data, number, folder)` trains in place from the policy as its own reference and returns metrics, in
    every process; `extra` adds columns to the pairs. The `existing` responses of a Question are candidates beside the
    policy's own: with `Sampling(k=1)` and a data set's chosen and rejected response this is Algorithm 1 of
    arXiv:2405.19332, which ranks {y, y_w, y_l}. The judge scores, or only compares (`ByComparison`).

    Raises ValueError for fewer prompts than rounds or a prompt with one candidate, TenfoldError for a folder that was
    begun with other settings or another policy, and JudgeFailed where more than the share `unjudged` of a round's
    prompts could not be judged; whatever fails, all that was done is kept, and the same call goes on from there.
    """
    sampling, folder, world = sampling or Sampling(), Path(folder), Processes()
    asked = [q if isinstance(q, Question) else Question(q, "", tuple(encoded([q], tokenizer)[0])) for q in prompts]
    if rounds < 1 or len(asked) < rounds:
        raise ValueError(f"{len(asked)} prompts cannot be split over {rounds} rounds: give at least one each")
    if sampling.k + sampling.greedy + min(len(q.existing) for q in asked) < 2:
        raise ValueError("a pair needs two responses to a prompt: sample with k of at least 2, or give existing ones")
    bounds = [len(asked) * i // rounds for i in range(rounds + 1)]
    portions = [asked[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    settings = {**asdict(sampling), "margin": margin, "unjudged": unjudged, "judge": getattr(judge, "identity", "")}
    settings["prompts"] = [[[*q.tokens], *q.existing] for q in asked] + [rounds]
    world.first(lambda: _begin(policy, folder, settings))
    loop = _Loop(
        policy, tokenizer, judge, train, sampling, margin, unjudged, extra, progress and world.rank == 0, world
    )
    finished = []
    for number, portion in enumerate(portions, start=1):
        place = folder / f"round-{number}"
        if not world.first((place / "round.json").exists):
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
    judge: Any
    train: Train
    sampling: Sampling
    margin: float | int
    unjudged: float | int
    extra: Extra | None
    progress: bool
    world: Processes

    def run(self, portion: list[Question], number: int, place: Path) -> None:
        """Do one round, or what is left of it."""
        world = self.world
        if not world.first((place / "samples.json").exists):
            shares = world.together(lambda: self._samples(portion, number))
            said = sum((share if world.rank == 0 else [] for share in shares), [])
            world.first(lambda: _write(place / "samples.json", [row for _, row in sorted(said, key=lambda r: r[0])]))
        samples = _read(place / "samples.json")
        if not world.first((place / "scores.json").exists):
            self._judge(samples, place)
        groups = _groups(samples, _read(place / "scores.json"))
        data, counts = pairs(groups, margin=self.margin, extra=self.extra)
        counts = replace(counts, unjudged=len(samples) - len(groups))
        history = self.train(self.policy, data, number, place)
        world.first(lambda: save_policy(self.policy, place))
        world.first(lambda: _write(place / "round.json", {"counts": asdict(counts), "history": history}))

    def _samples(self, portion: list[Question], number: int) -> list[tuple[int, dict]]:
        """Return what the policy says to this process's share of the prompts, with their places."""
        how, ids, mine = (
            self.sampling,
            [q.tokens for q in portion],
            range(self.world.rank, len(portion), self.world.count),
        )
        if not mine:
            return []
        options = {"max_new_tokens": how.max_new_tokens, "batch_size": how.batch_size, "progress": self.progress}
        seed = how.seed * 10_007 + number
        draw = {"temperature": how.temperature, "seed": seed, "only": mine}
        drawn = sample(self.policy, self.tokenizer, ids, how.k, **draw, **options) if how.k else [[] for _ in mine]
        likely = [[] for _ in mine]
        if how.greedy:
            likely = sample(self.policy, self.tokenizer, ids, temperature=0, only=mine, **options)
        return [(i, self._row(portion[i], [*some, *one])) for i, some, one in zip(mine, drawn, likely, strict=True)]

    def _row(self, question: Question, own: list[Response]) -> dict:
        """Return a prompt with all of its candidates: those of the policy, and those that the data set has."""
        responses = [asdict(r) for r in (*own, *(self._existing(text) for text in question.existing))]
        return {
            "key": key_of(list(question.tokens), [r["tokens"] for r in responses]),
            "prompt": question.text,
            "prompt_ids": list(question.tokens),
            "greedy": self.sampling.k if self.sampling.greedy else None,
            "existing": len(question.existing),
            "responses": responses,
        }

    def _existing(self, text: str) -> Response:
        ids = [*self.tokenizer(text, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]
        return Response(tuple(ids), text, 0.0, True)

    def _judge(self, samples: list[dict], place: Path) -> None:
        """Write every prompt's scores by its key; each prompt's are on disk before the next is asked for."""
        world, path = self.world, place / "scores.sqlite"

        def ask(journal: Journal, row: dict) -> list[float]:
            texts = [response["text"] for response in row["responses"]]
            return journal.once(row["key"], lambda: checked_scores(self.judge, row["prompt"], texts))

        def share() -> list[JudgeFailed]:
            with Journal(path) as journal:
                mine = samples[world.rank :: world.count]
                answers = ask_all(self.judge, mine, lambda row: ask(journal, row), progress=self.progress)
            return [answer for answer in answers if isinstance(answer, JudgeFailed)]

        def close() -> None:
            with Journal(path) as journal:
                _write(place / "scores.json", dict(journal.items()))
            for name in (path, *place.glob("scores.sqlite-*")):
                name.unlink(missing_ok=True)

        refuse_failures(sum(world.together(share), []), of=len(samples), allowed=self.unjudged)
        world.first(close)


def _begin(policy: Any, folder: Path, now: dict[str, Any]) -> None:
    """Put down the settings and the policy as it came, or refuse a folder that was begun with other settings."""
    path, now = folder / "settings.json", now | {"policy": policy_key(policy)}
    if not path.exists():
        _write(path, now)
    before = {"policy": now["policy"]} | _read(path)  # earlier versions did not write it
    changed = [name for name in now if before.get(name) != json.loads(json.dumps(now[name]))]
    if changed:
        raise TenfoldError(
            f"{folder} was begun with other settings ({', '.join(changed)}): use another folder, or the same settings."
        )
    if not (folder / "round-0" / "policy.safetensors").exists():
        save_policy(policy, folder / "round-0")


def _groups(samples: list[dict], scores: dict[str, list[float]]) -> list[Scored]:
    """Return the prompts that were judged, with their scores by key."""
    return [
        Scored(
            row["prompt"],
            tuple(row["prompt_ids"]),
            tuple(Response(**{**response, "tokens": tuple(response["tokens"])}) for response in row["responses"]),
            tuple(scores[row["key"]]),
            row["greedy"],
            row["existing"],
        )
        for row in samples
        if row["key"] in scores
    ]


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf8"))


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(value), encoding="utf8")
    os.replace(temporary, path)
