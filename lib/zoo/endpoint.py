"""One client for servers that speak the OpenAI chat protocol, for every room that asks a model elsewhere."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lib import TenfoldError

RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}  # statuses that may pass
TIME_OUT, NO_CONNECTION, NO_COMPLETION = "time-out", "no connection", "an answer that is no completion"


class EndpointFailed(TenfoldError):
    """No completion came. `reason` says why in few words, `status` is the HTTP status where there was one.

    `final` tells a refusal for good (a wrong address, key or model: going on would only fail again) from a time-out, a
    lost connection, a busy server or an unreadable answer.
    """

    def __init__(self, url: str, reason: str, *, status: int | None = None) -> None:
        super().__init__(f"the endpoint {url} gave no completion ({reason}): check its address, the model and the key.")
        self.reason, self.status = reason, status
        self.final = status is not None and status not in RETRIED


@dataclass(frozen=True)
class Completion:
    """Texts of the choices, in order, and the completion tokens that the server counted (0 where it did not say)."""

    texts: tuple[str, ...]
    tokens: int = 0


def chat_completion(
    url: str,
    request: Mapping[str, Any],
    *,
    key: str | None = None,
    tries: int = 1,
    seconds: float | int = 60,
    pause: float | int = 1,
    before_try: Callable[[], None] = lambda: None,
) -> Completion:
    """Ask `POST <url>/chat/completions` (`url` up to /v1) up to `tries` times, after `pause` seconds, doubling.

    `before_try` is called before each request and may raise to stop, such as at the end of a budget. Raises
    EndpointFailed after the last try, or at once where the server refuses for good.
    """
    for left in reversed(range(tries)):
        before_try()
        try:
            return _ask(url, request, key, seconds)
        except EndpointFailed as error:
            if error.final or not left:
                raise
        time.sleep(pause)
        pause *= 2
    raise ValueError("tries must be at least 1")


def _ask(url: str, request: Mapping[str, Any], key: str | None, seconds: float | int) -> Completion:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    sent = urllib.request.Request(f"{url.rstrip('/')}/chat/completions", json.dumps(dict(request)).encode(), headers)
    try:
        with urllib.request.urlopen(sent, timeout=seconds) as reply:
            answer = json.loads(reply.read())
        texts = tuple(choice["message"]["content"] for choice in answer["choices"])
        tokens = int((answer.get("usage") or {}).get("completion_tokens", 0))
    except urllib.error.HTTPError as error:
        raise EndpointFailed(url, f"{error.code} {error.reason}", status=error.code) from None
    except OSError as error:
        timed_out = isinstance(error, TimeoutError) or "timed out" in str(error)
        raise EndpointFailed(url, TIME_OUT if timed_out else NO_CONNECTION) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise EndpointFailed(url, NO_COMPLETION) from None
    if not texts or not all(isinstance(text, str) for text in texts):
        raise EndpointFailed(url, NO_COMPLETION)
    return Completion(texts, tokens)
