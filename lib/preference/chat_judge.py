"""A language model as judge: a local one, or any server that speaks the OpenAI chat protocol.

A comparison is asked in both orders and averaged, since language models favour a position; what cannot be read as a
verdict counts as a tie in its order. Each question is one expert call, valid or not: `asked` and `unreadable` say how
many there were.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from lib import TenfoldError
from lib.preference.sampling import sample
from lib.zoo.endpoint import NO_COMPLETION, EndpointFailed, chat_completion

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


class ChatJudge:
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
        return cls(lambda question: _asked(url, model, question, key, timeout))

    def score(self, prompt: str, responses: Sequence[str]) -> list[float]:
        """Rating of each response from 1 to 10; the middle, 5.5, where the reply holds no number."""
        return [self._rate(RATE.format(prompt=prompt, response=response)) for response in responses]

    def prefer(self, prompt: str, a: str, b: str) -> float:
        """Mean preference for `a` over both orders: 1, 3/4, 1/2 (a tie, or one verdict each way), 1/4 or 0."""
        first = self._compare(COMPARE.format(prompt=prompt, a=a, b=b))
        swapped = self._compare(COMPARE.format(prompt=prompt, a=b, b=a))
        return (first + 1 - swapped) / 2

    def _compare(self, question: str) -> float:
        found = VERDICT.search(self._reply(question))
        if found is None:
            self.unreadable += 1
            return 0.5
        return {"a": 1.0, "b": 0.0, "tie": 0.5}[found[1].lower()]

    def _rate(self, question: str) -> float:
        found = NUMBER.search(self._reply(question))
        if found is None:
            self.unreadable += 1
            return MIDDLE
        return float(found[1])

    def _reply(self, question: str) -> str:
        self.asked += 1
        return self.ask(question)


def _asked(url: str, model: str, question: str, key: str | None, timeout: float | int) -> str:
    request = {"model": model, "temperature": 0, "messages": [{"role": "user", "content": question}]}
    try:
        return chat_completion(url, request, key=key, seconds=timeout).texts[0]
    except EndpointFailed as error:
        if error.reason == NO_COMPLETION:
            complaint = "did not answer in the OpenAI chat format: check its address."
        else:
            complaint = f"cannot be asked ({error.reason}): check that it runs and the key."
        raise TenfoldError(f"the judge at {url} {complaint}") from None
