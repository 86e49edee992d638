"""An OpenAI-compatible endpoint with a cache and a budget: nothing that was paid for is asked for twice."""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib import TenfoldError
from lib.autoinstruct import journal
from lib.zoo.endpoint import NO_COMPLETION, EndpointFailed, chat_completion


class BudgetSpent(TenfoldError):
    """The budget does not allow another request; what was answered so far is in the cache."""


@dataclass
class Budget:
    """Most requests and most completion tokens that may be spent, and what has been."""

    requests: int = 1000
    tokens: int = 1_000_000
    spent_requests: int = 0
    spent_tokens: int = 0

    def check(self, wanted: int) -> None:
        """Raise BudgetSpent where another request for up to `wanted` tokens is not allowed."""
        if self.spent_requests >= self.requests or self.spent_tokens + wanted > self.tokens:
            raise BudgetSpent(
                f"the budget is spent ({self.spent_requests} of {self.requests} requests, {self.spent_tokens} of "
                f"{self.tokens} tokens): raise it and start again; answers so far are kept."
            )

    def spend(self) -> None:
        """Count a request; raises BudgetSpent where none is left."""
        self.check(0)
        self.spent_requests += 1


@dataclass
class Endpoint:
    """Chat completions at `base_url` (`https://host/v1`), kept in a JSON-lines file.

    The key is read from the environment variable `key_variable`, and never written anywhere.
    """

    base_url: str
    model: str
    cache: Path | None = None
    budget: Budget = field(default_factory=Budget)
    key_variable: str = "OPENAI_API_KEY"
    tries: int = 4
    seconds: float = 60.0
    pause: float = 1.0  # before the first repetition; doubles

    def __post_init__(self) -> None:
        self._kept: dict[str, list[str]] = {record["key"]: record["texts"] for record in journal.read(self.cache)}

    def complete(
        self, prompt: str, *, count: int = 1, temperature: float = 1.0, max_tokens: int = 512, seed: int = 0
    ) -> list[str]:
        """`count` answers to a prompt; raises BudgetSpent, or TenfoldError where the endpoint refuses or is away."""
        request = {
            "model": self.model, "messages": [{"role": "user", "content": prompt}], "n": count,
            "temperature": temperature, "top_p": 1.0, "max_tokens": max_tokens, "seed": seed,
        }  # fmt: skip
        key = hashlib.sha256(json.dumps([self.base_url, request], sort_keys=True).encode()).hexdigest()[:24]
        if key not in self._kept:
            self.budget.check(count * max_tokens)
            self._kept[key] = self._ask(request, key)
        return self._kept[key]

    def _ask(self, request: dict[str, Any], key: str) -> list[str]:
        secret, patience = os.environ.get(self.key_variable), {"tries": self.tries, "pause": self.pause}
        try:
            answer = chat_completion(
                self.base_url, request, key=secret, seconds=self.seconds, before_try=self.budget.spend, **patience
            )
        except EndpointFailed as error:
            raise TenfoldError(self._complaint(error)) from None
        self.budget.spent_tokens += answer.tokens
        journal.append(self.cache, [{"key": key, "texts": list(answer.texts)}])
        return list(answer.texts)

    def _complaint(self, error: EndpointFailed) -> str:
        if error.reason == NO_COMPLETION:
            return f"{self.base_url} gave no text: it does not speak the chat completions API."
        if error.status is None:
            return f"{self.base_url} did not answer ({error.reason}): is it running?"
        hint = f": check ${self.key_variable}" if error.status in (401, 403) else ""
        return f"{self.base_url} refused the request with status {error.status}{hint}."
