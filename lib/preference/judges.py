"""What a judge is, and judges that need no person: likeness to an answer, ROUGE-L, a reward model, recorded labels."""

import itertools
import json
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from lib import TenfoldError
from lib.core.chat import ChatFailed

Job = TypeVar("Job")
Answer = TypeVar("Answer")
GIVE_UP = 3  # the first jobs: where all of them fail, the judge is broken
WORD = re.compile(r"\w+")


@runtime_checkable
class Judge(Protocol):
    """Scores are larger for better responses; a preference is the probability that `a` is better (a tie is 1/2).

    A class that inherits from this one needs `score` only; one that only compares needs `prefer` only, and is ranked by
    (`ByComparison`). Beside them a judge may say its `identity`: what its opinion rests on (an encoder, a model,
    people), the same word for all judges that rest on it. `concurrency` questions may be asked at once, one where it
    says none.
    """

    def score(self, prompt: str, responses: Sequence[str]) -> list[float]:
        """Score each response to a prompt."""
        ...

    def prefer(self, prompt: str, a: str, b: str) -> float:
        """Return the chance in [0, 1] that the first response is better: by score 1, 0, or 1/2 for a tie."""
        first, second = self.score(prompt, [a, b])
        return 0.5 if first == second else float(first > second)


class JudgeFailed(TenfoldError):
    """A judge raised, gave something that is not one finite number a response, or cannot be read."""


class ByComparison(Judge):
    """Scores out of comparisons, for a judge that has `prefer` only: the mean chance to be preferred to the others.

    k different responses cost k(k - 1)/2 comparisons; equal texts share a score and are not compared.
    """

    def __init__(self, judge: Any) -> None:
        self.judge, self.concurrency = judge, getattr(judge, "concurrency", 1)

    @property
    def identity(self) -> str:
        """Whose opinion it is: its judge's."""
        return getattr(self.judge, "identity", "")

    def prefer(self, prompt: str, a: str, b: str) -> float:
        """Return the judge's own preference; raises ValueError where it is no chance."""
        chance = float(self.judge.prefer(prompt, a, b))
        if not 0 <= chance <= 1:
            raise ValueError(f"a preference of {chance} is no chance: give a number from 0 to 1")
        return chance

    def score(self, prompt: str, responses: Sequence[str]) -> list[float]:
        """Return the mean preference of each response over the others; 1/2 where all are equal."""
        won = dict.fromkeys(responses, 0.0)
        for a, b in itertools.combinations(won, 2):
            chance = self.prefer(prompt, a, b)
            won[a], won[b] = won[a] + chance, won[b] + 1 - chance
        return [won[r] / (len(won) - 1) if len(won) > 1 else 0.5 for r in responses]


def identity_of(judge: Any) -> str:
    """Return what a judge's opinion rests on; raises ValueError where it does not say."""
    identity = getattr(judge, "identity", None)
    if not isinstance(identity, str) or not identity:
        raise ValueError(f"{type(judge).__name__} does not say what its opinion rests on: set its `identity`, a word")
    return identity


def checked_scores(judge: Any, prompt: str, responses: Sequence[str]) -> list[float]:
    """Score one prompt's responses; raises JudgeFailed where the judge raises or a score is missing or not finite.

    A spent budget and a server that refuses for good pass as they are: the next prompt would fare no better.
    """
    scores_itself = hasattr(judge, "score") and getattr(type(judge), "score", None) is not Judge.score
    asked = judge if scores_itself else ByComparison(judge)
    scores = _asked(judge, prompt, lambda: [float(score) for score in asked.score(prompt, responses)])
    if len(scores) != len(responses) or not all(map(math.isfinite, scores)):
        raise JudgeFailed(
            f"{type(judge).__name__} gave {scores} for {len(responses)} responses to {_short(prompt)}: a judge gives "
            "one finite number a response."
        )
    return scores


def _asked(judge: Any, prompt: str, ask: Callable[[], Answer]) -> Answer:
    """Ask about a prompt; raises JudgeFailed where the judge raises, but for what would meet the next prompt too."""
    name, short = type(judge).__name__, _short(prompt)
    try:
        return ask()
    except TenfoldError as error:
        if isinstance(error, ChatFailed) and not error.final:
            raise JudgeFailed(f"{name} got no answer on the prompt {short}: {error}") from error
        raise
    except Exception as error:
        raise JudgeFailed(
            f"{name} failed on the prompt {short} ({type(error).__name__}: {error}); scores given before are kept: "
            "mend the judge and run again."
        ) from error


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 60 else prompt[:57] + "…")


def ask_all(
    judge: Any, jobs: Sequence[Job], ask: Callable[[Job], Answer], *, label: str = "judge", progress: bool = False
) -> list[Answer | JudgeFailed]:
    """Ask about every job, as many at once as the judge takes; a job that failed has its JudgeFailed in its place.

    Any other error stops it, and so do failures of the first three jobs: then nothing more is asked.
    """
    stopped, answers = threading.Event(), []

    def one(job: Job) -> Any:
        if stopped.is_set():
            return None
        try:
            return ask(job)
        except JudgeFailed as failure:
            return failure
        except BaseException:
            stopped.set()
            raise

    at_once = getattr(judge, "concurrency", 1)
    bar = tqdm(total=len(jobs), desc=label, disable=not progress, mininterval=1.0)
    with ThreadPoolExecutor(at_once) as threads, bar:
        for answer in map(one, jobs) if at_once == 1 else threads.map(one, jobs):
            answers.append(answer)
            bar.update()
            if len(answers) == GIVE_UP and all(isinstance(a, JudgeFailed) for a in answers):
                stopped.set()
                raise answers[0]
    return answers


def refuse_failures(answers: Sequence[Any], *, of: int | None = None, allowed: float = 0.0) -> None:
    """Raise JudgeFailed where more than the allowed share of the answers failed; what was answered is kept."""
    failed, count = [a for a in answers if isinstance(a, JudgeFailed)], len(answers) if of is None else of
    if len(failed) > allowed * count:
        raise JudgeFailed(f"{len(failed)} of {count} could not be judged, the others are kept. First: {failed[0]}")


def score_all(
    judge: Any, prompts: Sequence[str], responses: Sequence[Sequence[str]], *, progress: bool = True
) -> Float[Tensor, "prompts k"]:
    """Score k responses to each prompt [prompts, k], by a judge that scores or one that only compares.

    Raises JudgeFailed where prompts could not be judged, after all others were, and ValueError for prompts with
    different numbers of responses.
    """
    if len(prompts) != len(responses) or len({len(group) for group in responses}) > 1:
        raise ValueError(
            f"{len(prompts)} prompts come with {len(responses)} groups of {sorted({len(g) for g in responses})} "
            "responses: give each prompt the same number of responses"
        )
    rows = list(zip(prompts, responses, strict=True))
    scores = ask_all(judge, rows, lambda row: checked_scores(judge, *row), progress=progress)
    refuse_failures(scores)
    return torch.tensor(scores, dtype=torch.float64)


def win_rate(
    judge: Any, prompts: Sequence[str], ours: Sequence[str], theirs: Sequence[str], *, progress: bool = True
) -> Float[Tensor, " prompts"]:
    """Prefer our response or theirs at each prompt, in [0, 1], a tie being 1/2: the mean is the win rate.

    Raises JudgeFailed where prompts could not be judged, after all others were.
    """
    rows, asked = list(zip(prompts, ours, theirs, strict=True)), ByComparison(judge)

    def compare(row: tuple[str, str, str]) -> float:
        return _asked(judge, row[0], lambda: asked.prefer(*row))

    chances = ask_all(judge, rows, compare, label="compare", progress=progress)
    refuse_failures(chances)
    return torch.tensor(chances, dtype=torch.float64)


def copied_share(prompt: str, response: str) -> float:
    """Return the share of the response's words that stand beside a neighbour as they do in the prompt, from 0 to 1.

    An echo said twice is as copied as one said once. Where prompt or response is a single word, words count alone; an
    empty response has copied nothing.
    """
    source, said = WORD.findall(prompt.lower()), WORD.findall(response.lower())
    if min(len(said), len(source)) < 2:
        return sum(word in source for word in said) / max(1, len(said))
    neighbours = set(zip(source, source[1:], strict=False))
    copied = [pair in neighbours for pair in zip(said, said[1:], strict=False)]
    return sum(before or after for before, after in zip([False, *copied], [*copied, False], strict=True)) / len(said)


def copy_penalty(prompt: str, response: str, *, weight: float | int, free: float | int) -> float:
    """Return weight * max(0, c - free) / (1 - free) for the copied share c: 0 up to `free`, `weight` for all of it."""
    return weight * max(0.0, copied_share(prompt, response) - free) / (1 - free)


class ReferenceJudge(Judge):
    """Cosine similarity to the real answer in a sentence encoder's space, less a penalty for copying the prompt.

    score(x, y) = cos(e(y), e(y*)) - copy_penalty(x, y). Similarity alone rewards an echo of the prompt, which is on
    topic; at weight 2 an echo scores at most -1, so that no response that copies less than the free share ranks below
    it. An empty response has similarity 0. Raises ValueError for a weight or free share that make no penalty.
    """

    def __init__(
        self,
        encoder: Any,
        references: Mapping[str, str],
        *,
        weight: float | int = 2.0,
        free: float | int = 0.5,
        identity: str = "sentence similarity",
    ) -> None:
        if weight < 0 or not 0 <= free < 1:
            raise ValueError(f"weight = {weight} and free = {free} make no penalty: give weight >= 0, 0 <= free < 1")
        self.encoder, self.references, self.weight, self.free = encoder, references, weight, free
        self.identity = identity
        self._embedded: dict[str, Tensor] = {}

    def fingerprint(self) -> list:
        """Return what its scores depend on; not the embeddings that it has met so far."""
        return [self.encoder, self.references, self.weight, self.free]

    def score(self, prompt: str, responses: Sequence[str]) -> list[float]:
        """Return similarity less penalty of each response; raises ValueError for a prompt without a reference."""
        if prompt not in self._embedded:
            self._embedded[prompt] = self.encoder.encode([_reference_of(self.references, prompt)])[0]
        cosines = self.encoder.encode(list(responses)) @ self._embedded[prompt]
        return [
            (float(cosine) if text.strip() else 0.0) - copy_penalty(prompt, text, weight=self.weight, free=self.free)
            for cosine, text in zip(cosines, responses, strict=True)
        ]


class RougeJudge(Judge):
    """ROUGE-L (F measure) of a response to the beginning of the real answer, cut at `words` words.

    Answers often begin with the words of their question, so an echo scores well here too: a positive `weight` takes off
    the penalty of `ReferenceJudge`; at weight 1 an echo scores at most 0.
    """

    identity = "ROUGE-L"

    def __init__(
        self, references: Mapping[str, str], *, words: int = 48, weight: float | int = 0.0, free: float | int = 0.5
    ) -> None:
        from rouge_score.rouge_scorer import RougeScorer

        self.references, self.words, self.weight, self.free = references, words, weight, free
        self._scorer = RougeScorer(["rougeL"], use_stemmer=True)

    def score(self, prompt: str, responses: Sequence[str]) -> list[float]:
        """Return F measure less penalty of each response; raises ValueError for a prompt without a reference answer."""
        beginning = " ".join(_reference_of(self.references, prompt).split()[: self.words])
        return [
            self._scorer.score(beginning, response)["rougeL"].fmeasure
            - copy_penalty(prompt, response, weight=self.weight, free=self.free)
            for response in responses
        ]


def _reference_of(references: Mapping[str, str], prompt: str) -> str:
    if prompt not in references:
        raise ValueError(f"there is no reference answer to {prompt[:60]!r}: give the judge one for each prompt")
    return references[prompt]


class RewardModelJudge(Judge):
    """Any sequence-classification model with one output, on the conversation in its tokenizer's chat template.

    Nothing is cut off: a conversation of more than `max_length` tokens is refused. Raises ValueError for a model with
    another number of outputs.
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_length: int = 1024, identity: str = "reward model") -> None:
        labels = getattr(model.config, "num_labels", None)
        if labels != 1:
            raise ValueError(f"a reward model has one output, this one has {labels}: load it with num_labels=1")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        self.model, self.tokenizer, self.max_length = model.eval(), tokenizer, max_length
        self.identity = identity

    @torch.inference_mode()
    def score(self, prompt: str, responses: Sequence[str]) -> list[float]:
        """Return the reward of each response; raises ValueError for an exchange longer than `max_length`."""
        chats = [
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}] for response in responses
        ]
        texts = self.tokenizer.apply_chat_template(chats, tokenize=False)
        inputs = self.tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
        longest = inputs["input_ids"].shape[1]
        if longest > self.max_length:
            raise ValueError(
                f"the exchange has {longest} tokens and the reward model reads {self.max_length}: raise max_length, or "
                "shorten the prompt"
            )
        return self.model(**inputs.to(self.model.device)).logits[:, 0].float().tolist()

    def prefer(self, prompt: str, a: str, b: str) -> float:
        """Prefer by Bradley-Terry: sigmoid of the difference of rewards."""
        first, second = self.score(prompt, [a, b])
        return float(torch.sigmoid(torch.tensor(first - second, dtype=torch.float64)))


class RecordedJudge(Judge):
    """Labels that people gave: a JSON-lines file of {prompt, response, score} and {prompt, a, b, preference}.

    Raises TenfoldError where there is no file, or a line of it is neither of the two.
    """

    def __init__(self, path: Path | str, *, identity: str = "people") -> None:
        self.path, self.identity = Path(path), identity
        self._scores: dict[tuple[str, str], float] = {}
        self._preferences: dict[tuple[str, str, str], float] = {}
        if not self.path.exists():
            raise TenfoldError(f"{self.path} is not there: give a JSON-lines file of recorded labels.")
        for number, line in enumerate(self.path.read_text(encoding="utf8").split("\n"), start=1):
            if line.strip():
                self._take(line, number)

    def _take(self, line: str, number: int) -> None:
        try:
            row = json.loads(line)
            if "score" in row:
                self._scores[row["prompt"], row["response"]] = float(row["score"])
            else:
                self._preferences[row["prompt"], row["a"], row["b"]] = float(row["preference"])
                self._preferences[row["prompt"], row["b"], row["a"]] = 1 - float(row["preference"])
        except (ValueError, KeyError, TypeError):
            raise TenfoldError(
                f"line {number} of {self.path} is neither prompt, response, score nor prompt, a, b, preference."
            ) from None

    def score(self, prompt: str, responses: Sequence[str]) -> list[float]:
        """Return the recorded score of each response; raises TenfoldError where one was not recorded."""
        missing = [response for response in responses if (prompt, response) not in self._scores]
        if missing:
            raise TenfoldError(
                f"{self.path} has no label for the response {missing[0][:60]!r}: record it, or drop the prompt."
            )
        return [self._scores[prompt, response] for response in responses]

    def prefer(self, prompt: str, a: str, b: str) -> float:
        """Return the recorded preference of either order, else by recorded scores."""
        if (prompt, a, b) in self._preferences:
            return self._preferences[prompt, a, b]
        return super().prefer(prompt, a, b)
