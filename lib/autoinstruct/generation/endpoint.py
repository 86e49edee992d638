"""An OpenAI-compatible endpoint with a cache and a budget: nothing that was paid for is asked for twice."""

import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib import TenfoldError
from lib.autoinstruct import journal

RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}


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
        answer = self._post(request)
        try:
            texts = [choice["message"]["content"] or "" for choice in answer["choices"]]
        except (KeyError, TypeError):
            raise TenfoldError(
                f"{self.base_url} gave no `choices`: it does not speak the chat completions API."
            ) from None
        self.budget.spent_tokens += int((answer.get("usage") or {}).get("completion_tokens", 0))
        journal.append(self.cache, [{"key": key, "texts": texts}])
        return texts

    def _post(self, request: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {os.environ[self.key_variable]}"
        url, body = self.base_url.rstrip("/") + "/chat/completions", json.dumps(request).encode()
        for attempt in range(1, self.tries + 1):
            self.budget.spent_requests += 1
            try:
                sent = urllib.request.Request(url, data=body, headers=headers)
                with urllib.request.urlopen(sent, timeout=self.seconds) as reply:
                    return json.loads(reply.read())
            except urllib.error.HTTPError as error:
                if error.code not in RETRIED or attempt == self.tries:
                    hint = f": check ${self.key_variable}" if error.code in (401, 403) else ""
                    raise TenfoldError(f"{self.base_url} refused the request with status {error.code}{hint}.") from None
            except (OSError, ValueError) as error:
                if attempt == self.tries:
                    raise TenfoldError(f"{self.base_url} did not answer ({error}): is it running?") from None
            time.sleep(self.pause * 2 ** (attempt - 1))
            self.budget.check(0)
        raise AssertionError("unreachable")
