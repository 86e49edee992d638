"""Greedy generation of programs of a grammar, in batches; forced tokens cost no step of the model.

Rows of a batch take what they are given in turn: a choice's tokens are compared until only one text is left, whose rest
is appended at once. So a step of the model reads a few tokens of each row, and a call takes about as many steps as it
has arguments.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lib.core.generation import Context
from lib.core.scoring import padded
from lib.sciagent.grammar import Choice, Free, ProgramGrammar, Step

TRIED = (8, 512)  # likeliest tokens that are tried against the rules of free text
LONGEST_LINE = 48  # tokens of a free line
AT_ONCE = 12  # tokens of a row that the model reads in a step: rows wait for each other, so long texts go in pieces


class ProgramWriter:
    """A row that is a program of a grammar; `more` takes a token's logits and returns what the model reads next."""

    def __init__(self, tokenizer: Any, grammar: ProgramGrammar) -> None:
        self.tokenizer, self.written = tokenizer, []
        self.steps = grammar.steps()
        self._open(next(self.steps))

    def _open(self, step: Step | None) -> None:
        self.step, self.line = step, []
        encode = self.tokenizer.encode
        self.left = {t: encode(t, add_special_tokens=False) for t in step.options} if isinstance(step, Choice) else {}
        self.odds = dict(zip(step.options, step.odds, strict=True)) if isinstance(step, Choice) and step.odds else {}

    def _picked(self, text: str) -> None:
        try:
            self._open(self.steps.send(text))
        except StopIteration:
            self._open(None)

    def more(self, logits: Float[Tensor, "vocab"]) -> list[int]:
        """Take the token that the model decides, if one is to be decided, and all that must follow."""
        decided = []
        while self.step is not None:
            # The logits are those of the first token; after it, the model must read it before it decides again.
            token = self._next(logits if not decided else None)
            if token is None:
                break
            decided.append(token)
            self._take(token)
        self.written += decided
        return decided

    def _next(self, logits: Float[Tensor, "vocab"] | None) -> int | None:
        """The next token; None where the model must be asked first."""
        if isinstance(self.step, Free):
            return None if logits is None else self._line_token(logits, self.step)
        odds: dict[int, list[float]] = {}  # of the texts that go on with each token
        for text, ids in self.left.items():
            odds.setdefault(ids[len(self.line)], []).append(self.odds.get(text, 1.0))
        possible = sorted(odds)
        if len(possible) == 1:
            return possible[0]
        if logits is None:
            return None
        scores = logits[possible].float()
        if self.odds:
            scores = scores + torch.tensor([sum(odds[token]) / len(odds[token]) for token in possible]).log().to(scores)
        return possible[int(scores.argmax())]

    def _take(self, token: int) -> None:
        self.line.append(token)
        at = len(self.line)
        if isinstance(self.step, Free):
            text = self.tokenizer.decode(self.line)
            if text.endswith("\n"):
                self._picked(text)
            elif at >= LONGEST_LINE:
                self._open(None)  # given up: the program ends here, and is refused
            return
        self.left = {text: ids for text, ids in self.left.items() if ids[at - 1] == token}
        done = [text for text, ids in self.left.items() if len(ids) == at]
        if done:
            self._picked(done[0])

    def _line_token(self, logits: Float[Tensor, "vocab"], step: Free) -> int:
        for number in TRIED:
            for token in logits.topk(min(number, len(logits))).indices.tolist():
                if step.allows(self.tokenizer.decode([*self.line, token])):
                    return token
        return self.tokenizer.encode("\n", add_special_tokens=False)[0]


@torch.inference_mode()
def generate(
    model: Any, tokenizer: Any, prompts: Sequence[str], grammars: Sequence[ProgramGrammar], *,
    batch_size: int = 16, progress: bool = False,
) -> list[str]:  # fmt: skip
    """Generate greedily, each row a program of its own grammar."""
    from tqdm import tqdm

    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts = [""] * len(prompts)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    for batch in tqdm(batches, desc="generate", disable=not progress):
        writers = [ProgramWriter(tokenizer, grammars[i]) for i in batch]
        _write(model, tokenizer, [prompts[i] for i in batch], writers)
        for i, writer in zip(batch, writers, strict=True):
            texts[i] = tokenizer.decode(writer.written)
    return texts


def _write(model: Any, tokenizer: Any, prompts: list[str], writers: Sequence[ProgramWriter]) -> None:
    context = Context(model, len(prompts))
    rows = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
    at_once = max(map(len, rows))  # the prompts whole, then a few tokens of each row at a time
    while any(rows):
        step = context.read(*padded([row[:at_once] for row in rows], side="left", device=model.device))
        logits = context.logits(step.hidden[:, -1])
        rows = [
            row[at_once:] or (writer.more(logits[i]) if row else [])
            for i, (row, writer) in enumerate(zip(rows, writers, strict=True))
        ]
        at_once = AT_ONCE
