"""A language model as judge: a local one, or any server that speaks the OpenAI chat protocol.

A comparison is asked in both orders and averaged, since language models favour a position; what cannot be read as a
verdict counts as a tie in its order. Each question is one expert call, valid or not: `asked` and `unreadable` say how
many there were.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from lib.core.chat import ChatClient, Decoding
from lib.preference.judges import Judge
from lib.preference.sampling import sample

COMPARE = (
    "Two assistants answered the same question. Say which answer helps the user more.\n\n"
    "Question:\n{prompt}\n\nAnswer A:\n{a}\n\nAnswer B:\n{b}\n\n"
    "Reply with one word: A, B, or tie."
)
RATE = (
    "Rate how well the answer helps the user, from 1 (useless) to 10 (could not be better).\n\n"
    "Question:\n{prompt}\n\nAnswer:\n{response}\n\nReply with the number only."
)
VERDICT = re.compile(r"\b(tie|a|b)\b", re.IGNORECASE)
NUMBER = re.compile(r"\b(10|[1-9])\b")
MIDDLE = 5.5


class ChatJudge(Judge):
    """A judge that asks a chat model; `ask` takes a question and returns the reply."""

    calls_per_comparison = 2

    def __init__(self, ask: Callable[[str], str]) -> None:
        self.ask, self.asked, self.unreadable = ask, 0, 0

    @classmethod
    def local(cls, model: Any, tokenizer: Any, *, max_new_tokens: int = 8) -> "ChatJudge":
        """Judge by a causal language model in this process, greedily decoded."""

        def ask(question: str) -> str:
            replies = sample(model, tokenizer, [question], temperature=0, max_new_tokens=max_new_tokens, progress=False)
            return replies[0][0].text

        return cls(ask)

    @classmethod
    def endpoint(cls, url: str, model: str, *, key: str | None = None, timeout: float | int = 60) -> "ChatJudge":
        """Judge by a server at `url` (such as `http://localhost:8000/v1`), at temperature 0."""
        client = ChatClient(model=model, url=url, decoding=Decoding(temperature=0), key=key, seconds=timeout)
        return cls(lambda question: client.complete(question).text)

    def score(self, prompt: str, responses: Sequence[str]) -> list[float]:
        """Rate each response from 1 to 10; the middle, 5.5, where the reply holds no number."""
        return [self._rate(RATE.format(prompt=prompt, response=response)) for response in responses]

    def prefer(self, prompt: str, a: str, b: str) -> float:
        """Return the mean preference for `a` over both orders: 1, 3/4, 1/2 (ties, or one verdict each way), 1/4, 0."""
        first = self._compare(COMPARE.format(prompt=prompt, a=a, b=b))
        swapped = self._compare(COMPARE.format(prompt=prompt, a=b, b=a))
        return (first + 1 - swapped) / 2

    def _compare(self, question: str) -> float:
        verdict = self._read(VERDICT, question)
        return 0.5 if verdict is None else {"a": 1.0, "b": 0.0, "tie": 0.5}[verdict.lower()]

    def _rate(self, question: str) -> float:
        number = self._read(NUMBER, question)
        return MIDDLE if number is None else float(number)

    def _read(self, pattern: re.Pattern[str], question: str) -> str | None:
        """Ask, and return what the pattern finds in the reply; None where it finds nothing."""
        self.asked += 1
        match = pattern.search(self.ask(question))
        self.unreadable += match is None
        return None if match is None else match[1]
