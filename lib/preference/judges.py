"""What a judge is, and judges that need no person: likeness to an answer, ROUGE-L, a reward model, recorded labels."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from lib import TenfoldError

WORD = re.compile(r"\w+")


@runtime_checkable
class Judge(Protocol):
    """Scores are larger for better responses; a preference is the probability that `a` is better (a tie is 1/2).

    A class that inherits from this one needs `score` only.
    """

    def score(self, prompt: str, responses: Sequence[str]) -> list[float]:
        """Score each response to a prompt."""
        ...

    def prefer(self, prompt: str, a: str, b: str) -> float:
        """Return the chance in [0, 1] that the first response is better: by score 1, 0, or 1/2 for a tie."""
        first, second = self.score(prompt, [a, b])
        return 0.5 if first == second else float(first > second)


class JudgeFailed(TenfoldError):
    """A judge raised, or gave something that is not one finite number a response."""


def checked_scores(judge: Judge, prompt: str, responses: Sequence[str]) -> list[float]:
    """Score one prompt's responses; raises JudgeFailed where the judge raises or a score is missing or not finite.

    A TenfoldError of the judge (a spent budget) passes as it is.
    """
    short = repr(prompt if len(prompt) <= 60 else prompt[:57] + "…")
    try:
        scores = [float(score) for score in judge.score(prompt, responses)]
    except TenfoldError:
        raise
    except Exception as error:
        raise JudgeFailed(
            f"{type(judge).__name__} failed on the prompt {short} ({type(error).__name__}: {error}); scores given "
            "before are kept: mend the judge and run again."
        ) from error
    if len(scores) != len(responses) or not all(map(math.isfinite, scores)):
        raise JudgeFailed(
            f"{type(judge).__name__} gave {scores} for {len(responses)} responses to {short}: a judge gives one finite "
            "number a response."
        )
    return scores


def score_all(
    judge: Judge, prompts: Sequence[str], responses: Sequence[Sequence[str]], *, progress: bool = True
) -> Float[Tensor, "prompts k"]:
    """Score k responses to each prompt [prompts, k].

    Raises JudgeFailed as `checked_scores` does, and ValueError for prompts with different numbers of responses.
    """
    if len(prompts) != len(responses) or len({len(group) for group in responses}) > 1:
        raise ValueError(
            f"{len(prompts)} prompts come with {len(responses)} groups of {sorted({len(g) for g in responses})} "
            "responses: give each prompt the same number of responses"
        )
    rows = zip(prompts, responses, strict=True)
    bar = tqdm(rows, total=len(prompts), desc="judge", disable=not progress, mininterval=1.0)
    return torch.tensor([checked_scores(judge, prompt, group) for prompt, group in bar], dtype=torch.float64)


def win_rate(
    judge: Judge, prompts: Sequence[str], ours: Sequence[str], theirs: Sequence[str], *, progress: bool = True
) -> Float[Tensor, " prompts"]:
    """Prefer our response or theirs at each prompt, in [0, 1], a tie being 1/2: the mean is the win rate."""
    rows = zip(prompts, ours, theirs, strict=True)
    bar = tqdm(rows, total=len(prompts), desc="compare", disable=not progress, mininterval=1.0)
    return torch.tensor([judge.prefer(*row) for row in bar], dtype=torch.float64)


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
        self, encoder: Any, references: Mapping[str, str], *, weight: float | int = 2.0, free: float | int = 0.5
    ) -> None:
        if weight < 0 or not 0 <= free < 1:
            raise ValueError(f"weight = {weight} and free = {free} make no penalty: give weight >= 0, 0 <= free < 1")
        self.encoder, self.references, self.weight, self.free = encoder, references, weight, free
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

    Raises ValueError for a model with another number of outputs.
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_length: int = 1024) -> None:
        labels = getattr(model.config, "num_labels", None)
        if labels != 1:
            raise ValueError(f"a reward model has one output, this one has {labels}: load it with num_labels=1")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        self.model, self.tokenizer, self.max_length = model.eval(), tokenizer, max_length

    @torch.inference_mode()
    def score(self, prompt: str, responses: Sequence[str]) -> list[float]:
        """Return the reward of each response."""
        chats = [
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}] for response in responses
        ]
        texts = self.tokenizer.apply_chat_template(chats, tokenize=False)
        inputs = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_length, add_special_tokens=False,
            return_tensors="pt",
        ).to(self.model.device)  # fmt: skip
        return self.model(**inputs).logits[:, 0].float().tolist()

    def prefer(self, prompt: str, a: str, b: str) -> float:
        """Prefer by Bradley-Terry: sigmoid of the difference of rewards."""
        first, second = self.score(prompt, [a, b])
        return float(torch.sigmoid(torch.tensor(first - second, dtype=torch.float64)))


class RecordedJudge(Judge):
    """Labels that people gave: a JSON-lines file of {prompt, response, score} and {prompt, a, b, preference}.

    Raises TenfoldError where there is no file, or a line of it is neither of the two.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._scores: dict[tuple[str, str], float] = {}
        self._preferences: dict[tuple[str, str, str], float] = {}
        if not self.path.exists():
            raise TenfoldError(f"{self.path} is not there: give a JSON-lines file of recorded labels.")
        for number, line in enumerate(self.path.read_text(encoding="utf8").splitlines(), start=1):
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
