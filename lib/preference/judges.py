"""Judges that need no person: similarity to a real answer, ROUGE-L to it, a reward model, and recorded human labels."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lib import TenfoldError
from lib.preference.copying import copy_penalty
from lib.preference.judging import prefer_by_score


class ReferenceJudge:
    """Cosine similarity to the real answer in a sentence encoder's space, less a penalty for copying the prompt.

    score(x, y) = cos(e(y), e(y*)) - weight * max(0, c(x, y) - free) / (1 - free), where c is the share of the
    response's words that stand beside a neighbour as in the prompt. Similarity alone rewards an echo of the prompt,
    which is on topic; at weight 2 an echo scores at most -1, so that no response that copies less than the free share
    ranks below it.
    An empty response has similarity 0.
    """

    def __init__(
        self, encoder: Any, references: Mapping[str, str], *, weight: float | int = 2.0, free: float | int = 0.5
    ) -> None:
        if weight < 0 or not 0 <= free < 1:
            raise TenfoldError(f"weight = {weight} and free = {free} make no penalty: give weight >= 0, 0 <= free < 1.")
        self.encoder, self.references, self.weight, self.free = encoder, references, weight, free
        self._embedded: dict[str, torch.Tensor] = {}

    def fingerprint(self) -> list:
        """What its scores depend on; not the embeddings that it has met so far."""
        return [self.encoder, self.references, self.weight, self.free]

    def score(self, prompt: str, responses: Sequence[str]) -> list[float]:
        """Similarity less penalty of each response; raises TenfoldError for a prompt without a reference answer."""
        similar = self.similarity(prompt, responses)
        return [s - self.penalty(prompt, response) for s, response in zip(similar, responses, strict=True)]

    def prefer(self, prompt: str, a: str, b: str) -> float:
        """Preference by score."""
        return prefer_by_score(self, prompt, a, b)

    def similarity(self, prompt: str, responses: Sequence[str]) -> list[float]:
        """Cosine of each response to the reference answer, in [-1, 1]."""
        if prompt not in self._embedded:
            self._embedded[prompt] = self.encoder.encode([reference_of(self.references, prompt)])[0]
        cosines = self.encoder.encode(list(responses)) @ self._embedded[prompt]
        return [float(c) if text.strip() else 0.0 for c, text in zip(cosines, responses, strict=True)]

    def penalty(self, prompt: str, response: str) -> float:
        """Penalty for copying: from 0 (at most the free share) to `weight` (all of it)."""
        return copy_penalty(prompt, response, weight=self.weight, free=self.free)


class RougeJudge:
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
        """F measure of each response; raises TenfoldError for a prompt without a reference answer."""
        beginning = " ".join(reference_of(self.references, prompt).split()[: self.words])
        return [
            self._scorer.score(beginning, response)["rougeL"].fmeasure
            - copy_penalty(prompt, response, weight=self.weight, free=self.free)
            for response in responses
        ]

    def prefer(self, prompt: str, a: str, b: str) -> float:
        """Preference by score."""
        return prefer_by_score(self, prompt, a, b)


class RewardModelJudge:
    """Any sequence-classification model with one output, on the conversation in its tokenizer's chat template."""

    def __init__(self, model: Any, tokenizer: Any, *, max_length: int = 1024) -> None:
        labels = getattr(model.config, "num_labels", None)
        if labels != 1:
            raise TenfoldError(f"a reward model has one output, this one has {labels}: load it with num_labels=1.")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        self.model, self.tokenizer, self.max_length = model.eval(), tokenizer, max_length

    @torch.inference_mode()
    def score(self, prompt: str, responses: Sequence[str]) -> list[float]:
        """Reward of each response."""
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
        """Preference by Bradley-Terry: sigmoid of the difference of rewards."""
        first, second = self.score(prompt, [a, b])
        return float(torch.sigmoid(torch.tensor(first - second, dtype=torch.float64)))


class RecordedJudge:
    """Labels that people gave: a JSON-lines file of {prompt, response, score} and {prompt, a, b, preference}."""

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
        """Recorded score of each response; raises TenfoldError where one was not recorded."""
        return [self._found(self._scores, (prompt, response)) for response in responses]

    def prefer(self, prompt: str, a: str, b: str) -> float:
        """Recorded preference of either order, else by recorded scores."""
        if (prompt, a, b) in self._preferences:
            return self._preferences[prompt, a, b]
        return prefer_by_score(self, prompt, a, b)

    def _found(self, table: dict, key: tuple[str, ...]) -> float:
        if key not in table:
            raise TenfoldError(
                f"{self.path} has no label for the response {key[1][:60]!r}: record it, or drop the prompt."
            )
        return table[key]


def reference_of(references: Mapping[str, str], prompt: str) -> str:
    """Reference answer of a prompt; raises TenfoldError where there is none."""
    if prompt not in references:
        raise TenfoldError(f"there is no reference answer to {prompt[:60]!r}: give the judge one for each prompt.")
    return references[prompt]
