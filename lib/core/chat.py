"""One client for servers that speak the OpenAI chat protocol; replies are kept, counted, recorded and replayed.

A reply is kept under a hash of the model, the messages and the decoding settings, so that what was paid for is not
asked for twice: by the client's own journal (`lib.core.store`), or by a file of recorded replies that needs no server.
"""

import base64
import gzip
import io
import json
import os
import random
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lib import TenfoldError, unwritable
from lib.core.store import BudgetExceeded, Journal, key_of

MAY_PASS = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # statuses of a server that may answer later
REFUSED = {401, 402, 403, 404}  # a wrong key, address or model, or no credit: every other question would fail too
TIME_OUT, NO_CONNECTION, NO_COMPLETION = "time-out", "no connection", "an answer that is no completion"
NO_KEY = "a key with characters that no request can hold"
LONGEST_PAUSE = 120  # seconds
SIDE_BY_SIDE, ROUNDS = 8, 8  # questions that a chat answers at once, and how often as many a Recorder asks together

Messages = str | Sequence[Mapping[str, Any]]  # a question, or a dialogue as the protocol writes it


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a reply is drawn: the protocol's settings; what is None or empty is not sent.

    A `stop` that is a text is one, not its letters.
    `n` replies are drawn to one question, `logprobs` gives each token's log-probability and those of so many
    alternatives, and `extra` is sent as it is (a server's own settings).
    """

    temperature: float | int = 1.0
    top_p: float | int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] | str = ()
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def request(self) -> dict[str, Any]:
        """Return the settings as the protocol names them."""
        top_p = None if self.top_p is None else float(self.top_p)  # 1 and 1.0 are one setting, and one key
        settings: dict[str, Any] = {"temperature": float(self.temperature), "top_p": top_p}
        settings |= {
            "max_tokens": self.max_tokens,
            "stop": ([self.stop] if isinstance(self.stop, str) else list(self.stop)) if self.stop else None,
            "seed": self.seed,
            "n": self.n if self.n != 1 else None,
        }
        if self.logprobs is not None:
            settings |= {"logprobs": True, "top_logprobs": self.logprobs}
        return {name: value for name, value in settings.items() if value is not None} | dict(self.extra)


@dataclass(frozen=True)
class Reply:
    """Texts of the `n` choices, why each ended ("stop", "length"), and the completion tokens that the server counted.

    `logprobs` holds, for each choice, the protocol's list of {token, logprob, top_logprobs}, where they were asked for.
    """

    texts: tuple[str, ...]
    finish: tuple[str, ...] = ()
    tokens: int = 0
    logprobs: tuple[list[dict[str, Any]], ...] = ()

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.texts[0]


class ChatFailed(TenfoldError):
    """No reply came. `reason` says why in few words, `status` is the HTTP status where there was one.

    `final`: the server refuses for good, and would refuse every other question. `paid`: it may have been paid for.
    """

    def __init__(self, url: str, reason: str, *, status: int | None = None, paid: bool = True) -> None:
        if reason == NO_COMPLETION:
            advice = "it does not speak the OpenAI chat protocol, or gives no text to this question"
        elif status is None and reason != NO_KEY:
            advice = "check that it runs, and its address"
        else:
            advice = "check its address, the model and the key"
        super().__init__(f"the endpoint {url} gave no completion ({reason}): {advice}.")
        self.url, self.reason, self.status, self.paid = url, reason, status, paid
        self.final = status in REFUSED or reason == NO_KEY
        self.may_pass = not self.final and (status is None or status in MAY_PASS)
        self.wait: float | None = None  # seconds that the server asked for

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it was made of, so that it comes out of a worker process as it went in."""
        made = partial(type(self), self.url, self.reason, status=self.status, paid=self.paid)
        return made, (), {"wait": self.wait}


@runtime_checkable
class Chat(Protocol):
    """Anything that replies to messages: an endpoint, recorded replies, a local model."""

    @property
    def model(self) -> str:
        """Name of the model."""
        ...

    def complete(self, messages: Messages, decoding: Decoding | None = None, *, attempt: int = 0) -> Reply:
        """Return the reply; another attempt may be answered differently. Raises TenfoldError where there is none."""
        ...


def user_message(text: str, images: Sequence[Any] = ()) -> dict[str, Any]:
    """Return a user's message of a text and PIL images, which are sent as PNG."""
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        content.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
    return {"role": "user", "content": content}


def reply_key(model: str, messages: Messages, decoding: Decoding, attempt: int = 0) -> str:
    """Hash under which a reply is kept: of the model, the messages, the decoding settings and the attempt."""
    return key_of(model, _dialogue(messages), decoding.request(), attempt)


@dataclass(kw_only=True)
class ChatClient:
    """A model behind `POST <url>/chat/completions` (`url` up to /v1; $OPENAI_BASE_URL where none is given).

    Every reply is kept in the `journal` (its own, in memory, where none is given). The journal's budget counts each
    request that may have been paid, its token budget what was drawn, `max_tokens` being set aside before.

    What may pass (a busy server, a time-out, a lost connection, an answer that is no completion) is tried `tries` times
    in all, after `pause` seconds, doubling, or after the server's Retry-After. At most `concurrency` requests run at
    once, whoever asks. `clean` is applied to each text before it is kept. The key is read from $`key_variable` at each
    request, and never kept or shown. Raises ValueError for an address that is none.
    """

    model: str
    url: str = ""
    decoding: Decoding = field(default_factory=Decoding)
    journal: Journal = field(default_factory=Journal)
    purpose: str = ""
    concurrency: int = 8
    tries: int = 4
    pause: float | int = 1.0
    seconds: float | int = 60.0
    clean: Callable[[str], str] | None = None
    key: str | None = field(default=None, repr=False)
    key_variable: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        self.url = (self.url or os.environ.get("OPENAI_BASE_URL", "")).rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"{self.url!r} is no endpoint: give its address up to /v1, beginning with http")
        if self.tries < 1 or self.concurrency < 1:
            raise ValueError(f"tries={self.tries} and concurrency={self.concurrency} must be at least 1")
        self._running = threading.BoundedSemaphore(self.concurrency)

    def complete(self, messages: Messages, decoding: Decoding | None = None, *, attempt: int = 0) -> Reply:
        """Return the reply, kept or asked for; another `attempt` is asked anew.

        Raises ChatFailed where none comes, and BudgetExceeded before a request that the budget does not allow.
        """
        decoding = decoding or self.decoding
        key, most = reply_key(self.model, messages, decoding, attempt), decoding.n * (decoding.max_tokens or 0)
        request = {"model": self.model, "messages": _dialogue(messages)} | decoding.request()
        kept = self.journal.once(
            key,
            lambda: self._asked(request, key),
            purpose=self.purpose,
            tokens=most,
            tokens_of=lambda row: row["tokens"] or most,  # a server that counts none has drawn no more than these
        )
        return _reply(kept)

    def complete_many(
        self, questions: Sequence[Messages], decoding: Decoding | None = None, *, attempt: int = 0
    ) -> list[Reply | ChatFailed]:
        """Return the replies in order, asked for side by side; a question that failed has its ChatFailed in its place.

        Raises ChatFailed where the server refuses for good, and BudgetExceeded: then nothing more is asked, and what
        was answered is in the journal.
        """
        stopped: list[TenfoldError] = []

        def one(messages: Messages) -> Reply | ChatFailed | None:
            if stopped:
                return None
            try:
                return self.complete(messages, decoding, attempt=attempt)
            except (ChatFailed, BudgetExceeded) as error:
                if isinstance(error, ChatFailed) and not error.final:
                    return error
                stopped.append(error)
                return None

        with ThreadPoolExecutor(self.concurrency) as threads:
            replies = list(threads.map(one, questions))
        if stopped:
            raise stopped[0]
        return [reply for reply in replies if reply is not None]

    def _asked(self, request: Mapping[str, Any], key: str) -> dict[str, Any]:
        """Row of a reply for the journal, after as many tries as it takes."""
        pause = self.pause
        for left in reversed(range(self.tries)):
            try:
                name = key_of(self.journal.identity, key, self.journal.unread(key))
                with self._running:
                    reply = self._posted(request, name)
                texts = reply.texts if self.clean is None else tuple(map(self.clean, reply.texts))
                return {"model": self.model} | asdict(replace(reply, texts=texts))
            except ChatFailed as failure:
                if failure.reason == NO_COMPLETION:  # the same answer must not be given again, not after a crash either
                    self.journal.count_unread(key)
                if not left or not failure.may_pass:
                    raise
                if failure.paid:
                    self.journal.spend(1, self.purpose)  # the next try is one more request
                wait = pause * random.uniform(0.75, 1.25) if failure.wait is None else failure.wait
            time.sleep(min(wait, LONGEST_PAUSE))
            pause *= 2
        raise AssertionError("the last try returns or raises")

    def _posted(self, request: Mapping[str, Any], idempotency_key: str) -> Reply:
        """Reply to one request; a server that knows its key answers and bills it once, also after a crash."""
        import httpx

        secret = (self.key or os.environ.get(self.key_variable) or "").strip()  # a file's key ends with its line
        if not (secret.isascii() and secret.isprintable()):
            raise ChatFailed(self.url, NO_KEY, paid=False)
        headers = {"Idempotency-Key": idempotency_key, "Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {secret}"} if secret else {}
        # Half of a surrogate pair, which real texts hold, has no UTF-8: it goes as JSON's own escape.
        body = json.dumps(request, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        try:
            answer = self._http.post(
                "chat/completions", content=body.encode("utf8", "backslashreplace"), headers=headers
            )
        except httpx.TimeoutException as error:
            raise ChatFailed(self.url, TIME_OUT, paid=not isinstance(error, httpx.ConnectTimeout)) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ChatFailed(self.url, NO_CONNECTION, paid=not isinstance(error, httpx.ConnectError)) from None
        if not answer.is_success:
            reason = f"{answer.status_code} {answer.reason_phrase}".strip()
            failure = ChatFailed(self.url, reason, status=answer.status_code, paid=False)
            failure.wait = _seconds(answer.headers.get("retry-after"))
            raise failure
        try:
            return _read(answer.json())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ChatFailed(self.url, NO_COMPLETION) from None

    @cached_property
    def _http(self) -> Any:
        """The connections: a new one for each request, since requests are long and few."""
        import httpx

        fresh = httpx.Limits(max_keepalive_connections=0)
        return httpx.Client(base_url=self.url, timeout=self.seconds, limits=fresh)


class Recorder:
    """Any chat whose replies are kept in a journal as they come, so that a long recording goes on where it was.

    Without `decoding` the chat's own counts.
    """

    def __init__(self, chat: Chat, journal: Journal, decoding: Decoding | None = None) -> None:
        self.chat, self.journal = chat, journal
        self.decoding: Decoding = decoding or getattr(chat, "decoding", None) or Decoding()

    @property
    def model(self) -> str:
        """Name of the chat's model."""
        return self.chat.model

    def complete(self, messages: Messages, decoding: Decoding | None = None, *, attempt: int = 0) -> Reply:
        """Return the chat's reply, from the journal where it is there."""
        decoding = decoding or self.decoding

        def ask() -> dict[str, Any]:
            return {"model": self.model} | asdict(self.chat.complete(messages, decoding, attempt=attempt))

        return _reply(self.journal.once(reply_key(self.model, messages, decoding, attempt), ask))

    def complete_many(
        self, questions: Sequence[Messages], decoding: Decoding | None = None, *, attempt: int = 0
    ) -> list[Reply]:
        """Return the chat's replies in order; it is asked together for those that are not in the journal.

        Raises the first failure once all are asked for and those that came are in the journal.
        """
        decoding = decoding or self.decoding
        keys = [reply_key(self.model, messages, decoding, attempt) for messages in questions]
        missing = {key: messages for key, messages in zip(keys, questions, strict=True) if key not in self.journal}
        if (ask := getattr(self.chat, "complete_many", None)) is not None:
            left, failed = list(missing), []
            each = ROUNDS * getattr(self.chat, "concurrency", getattr(self.chat, "batch_rows", SIDE_BY_SIDE))
            for some in (left[start : start + each] for start in range(0, len(left), each)):
                replies = ask([missing[key] for key in some], decoding, attempt=attempt)
                came = {k: reply for k, reply in zip(some, replies, strict=True) if not isinstance(reply, ChatFailed)}
                self.journal.put_many({key: {"model": self.model} | asdict(reply) for key, reply in came.items()})
                failed += [reply for reply in replies if isinstance(reply, ChatFailed)]
            if failed:
                raise failed[0]
        return [self.complete(messages, decoding, attempt=attempt) for messages in questions]


def complete_all(chat: Any, questions: Sequence[Messages], decoding: Decoding) -> list[Reply]:
    """Return a chat's replies in order, asked for together where it can; raises the first failure."""
    if not hasattr(chat, "complete_many"):
        return [chat.complete(messages, decoding) for messages in questions]
    replies = chat.complete_many(questions, decoding)
    for failed in (reply for reply in replies if isinstance(reply, ChatFailed)):
        raise failed
    return replies


def write_replies(path: Path | str, rows: Mapping[str, Any]) -> int:
    """Write replies (a journal, or some of one) as compressed JSON lines; return their number.

    The same replies give the same bytes. The questions are not in the file: they may be somebody's text.
    """
    lines = [json.dumps({"key": key} | rows[key]) + "\n" for key in sorted(rows)]
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(gzip.compress("".join(lines).encode("utf8"), mtime=0))
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path.parent, "its path", error) from None
    return len(lines)


class Replayer:
    """A model's recorded replies (`write_replies`), given to those who ask the same again.

    Raises TenfoldError for a file that is not there or damaged, and for a reply that it does not hold.
    """

    def __init__(self, path: Path | str, model: str, *, decoding: Decoding | None = None) -> None:
        self.path, self.model, self.decoding = Path(path), model, decoding or Decoding()
        try:
            # `splitlines` would also break a text at U+2028, which JSON may hold as it is.
            lines = gzip.decompress(self.path.read_bytes()).decode("utf8").split("\n")
            self.rows = {row["key"]: row for row in map(json.loads, filter(str.strip, lines))}
        except FileNotFoundError:
            raise TenfoldError(
                f"the recorded replies {self.path} are not there: record them, or ask a model."
            ) from None
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
            raise TenfoldError(
                f"the recorded replies {self.path} cannot be read ({error}): bring the file anew."
            ) from None

    def __len__(self) -> int:
        return len(self.rows)

    def complete(self, messages: Messages, decoding: Decoding | None = None, *, attempt: int = 0) -> Reply:
        """Return the recorded reply."""
        row = self.rows.get(reply_key(self.model, messages, decoding or self.decoding, attempt))
        if row is None:
            question = json.dumps(_dialogue(messages)[-1]["content"], ensure_ascii=False)
            raise TenfoldError(
                f"{self.path} holds no reply of {self.model} to {question[:80]} with these settings: record it with "
                "the model, or ask as it was recorded."
            )
        return _reply(row)

    def complete_many(
        self, questions: Sequence[Messages], decoding: Decoding | None = None, *, attempt: int = 0
    ) -> list[Reply]:
        """Return the recorded replies in order."""
        return [self.complete(messages, decoding, attempt=attempt) for messages in questions]


def _dialogue(messages: Messages) -> list[dict[str, Any]]:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    return [dict(message) for message in messages]


def _read(answer: Any) -> Reply:
    """Reply in a server's answer; raises where it has no choice with a text."""
    choices = answer["choices"]
    texts = tuple(choice["message"]["content"] for choice in choices)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise TypeError("no text")
    logprobs: list[Any] = [(choice.get("logprobs") or {}).get("content") for choice in choices]
    return Reply(
        texts,
        tuple(str(choice.get("finish_reason") or "") for choice in choices),
        int((answer.get("usage") or {}).get("completion_tokens") or 0),
        tuple(logprobs) if all(logprobs) else (),
    )


def _reply(row: Mapping[str, Any]) -> Reply:
    """Reply of a row of a journal or a file."""
    return Reply(tuple(row["texts"]), tuple(row["finish"]), row["tokens"], tuple(row["logprobs"]))


def _seconds(retry_after: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, be they written as a number or as a date."""
    if not retry_after:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
