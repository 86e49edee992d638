"""A language model as judge: a local one, or any server that speaks the OpenAI chat protocol.

**The contract of a reply.** Reasoning blocks (`<think>…</think>`) are cut off first. Then counts, in this order: a JSON
object with `verdict`; the last `Verdict: …` in the text; the one verdict that the text names, scales set aside ("from
1 to 10", "8/10" is 8). A text that names several, or none, is unreadable: it is counted and asked again once, with a
reminder, and what is unreadable twice is a JudgeFailed for its prompt, never a number.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from lib.core.chat import ChatClient, ChatFailed, Decoding
from lib.core.store import Journal
from lib.preference.judges import Judge, JudgeFailed
from lib.preference.sampling import sample

COMPARE = (
    "Two assistants answered the same question. Say which answer helps the user more.\n\n"
    "Question:\n{prompt}\n\nAnswer A:\n{a}\n\nAnswer B:\n{b}\n\n"
    "Reply with one line: Verdict: A, Verdict: B, or Verdict: tie."
)
RATE = (
    "Rate how well the answer helps the user, from 1 (useless) to 10 (could not be better).\n\n"
    "Question:\n{prompt}\n\nAnswer:\n{response}\n\nReply with one line: Verdict: and the number."
)
AGAIN = '\n\nReply with that one line only, such as "Verdict: {example}", and nothing else.'
REASONING = re.compile(r"<(think|thinking|reasoning)>.*?(</\1>|$)", re.DOTALL | re.IGNORECASE)
SCALE = re.compile(
    r"\bfrom\s+\d+\s+to\s+\d+|\bbetween\s+\d+\s+and\s+\d+|(?:\s*/|\s+out of)\s*10\b|\b1\s*[-–]\s*10\b", re.I
)
LETTER, NUMBER = r"(?:[Aa]n?\s+)?(A|B|[Tt][Ii][Ee])\b", r"(\d+(?:\.\d+)?)(?![\w.]*\d)"
CHOICES, GRADES = {"a": 1.0, "b": 0.0, "tie": 0.5}, (1.0, 10.0)


def read_verdict(reply: str, *, compare: bool) -> float | None:
    """Return the verdict of a reply by the contract above: 1, 0 or 1/2 (A, B, tie), or a grade; None: unreadable."""
    said = REASONING.sub("", reply).strip()
    try:
        said = "Verdict: " + str(json.loads(said.removeprefix("```json").strip("` \n"))["verdict"])
    except (ValueError, KeyError, TypeError):
        pass
    said, form = SCALE.sub("", said).replace("*", ""), LETTER if compare else NUMBER
    if bare := re.fullmatch(r"\W*(a|b|tie)\W*" if compare else r"\W*(\d+(?:\.\d+)?)\W*", said, re.IGNORECASE):
        return _value(bare[1], compare)
    marked = re.findall(r"(?i:verdict)(?:\s+is)?\W{0,3}" + form, said)
    named = marked[-1:] if "verdict" in said.lower() else sorted({v.lower() for v in re.findall(r"\b" + form, said)})
    return _value(named[0], compare) if len(named) == 1 else None


def _value(verdict: str, compare: bool) -> float | None:
    if compare:
        return CHOICES[verdict.lower()]
    return float(verdict) if GRADES[0] <= float(verdict) <= GRADES[1] else None


class ChatJudge(Judge):
    """A judge that asks a chat model; `ask` takes a question and returns the reply.

    A comparison is asked in both orders and averaged, since language models favour a position. `asked` counts
    questions, `unreadable` replies that held no verdict.
    """

    calls_per_comparison = 2

    def __init__(self, ask: Callable[[str], str], *, identity: str = "chat model", concurrency: int = 1) -> None:
        self.ask, self.identity, self.concurrency = ask, identity, concurrency
        self.asked, self.unreadable = 0, 0

    @classmethod
    def local(
        cls, model: Any, tokenizer: Any, *, max_new_tokens: int = 16, identity: str = "local chat model"
    ) -> "ChatJudge":
        """Judge by a causal language model in this process, greedily decoded."""

        def ask(question: str) -> str:
            replies = sample(model, tokenizer, [question], temperature=0, max_new_tokens=max_new_tokens, progress=False)
            return replies[0][0].text

        return cls(ask, identity=identity)

    @classmethod
    def endpoint(
        cls,
        url: str,
        model: str,
        *,
        key: str | None = None,
        timeout: float | int = 60,
        journal: Journal | None = None,
        concurrency: int = 8,
    ) -> "ChatJudge":
        """Judge by a server at `url` (such as `http://localhost:8000/v1`), at temperature 0, `concurrency` at once.

        Replies are asked for as JSON, and as text from where the server refuses that. A `journal` (such as a Ledger on
        disk) keeps every paid reply, and its budget counts every request, also those that were tried again.
        """
        client = ChatClient(
            model=model, url=url, decoding=Decoding(temperature=0), key=key, seconds=timeout, concurrency=concurrency,
            journal=Journal() if journal is None else journal,
        )  # fmt: skip
        schema = {"type": "object", "properties": {"verdict": {"type": ["string", "number"]}}, "required": ["verdict"]}
        wanted = {"type": "json_schema", "json_schema": {"name": "judgement", "schema": schema}}
        structured = [Decoding(temperature=0, extra={"response_format": wanted})]

        def ask(question: str) -> str:
            try:
                return client.complete(question, *structured).text
            except ChatFailed as failure:
                if not structured or failure.status not in (400, 422):
                    raise
            structured.clear()  # this server knows no response_format
            return client.complete(question).text

        return cls(ask, identity=model, concurrency=concurrency)

    def score(self, prompt: str, responses: Sequence[str]) -> list[float]:
        """Rate each response from 1 to 10; raises JudgeFailed for a reply that is unreadable twice."""
        return [self._read(RATE.format(prompt=prompt, response=r), compare=False) for r in responses]

    def prefer(self, prompt: str, a: str, b: str) -> float:
        """Return the mean preference for `a` over both orders: 1, 3/4, 1/2 (ties, or one verdict each way), 1/4, 0."""
        first = self._read(COMPARE.format(prompt=prompt, a=a, b=b), compare=True)
        swapped = self._read(COMPARE.format(prompt=prompt, a=b, b=a), compare=True)
        return (first + 1 - swapped) / 2

    def _read(self, question: str, *, compare: bool) -> float:
        for reminder in ("", AGAIN.format(example="B" if compare else 7)):
            self.asked += 1
            reply = self.ask(question + reminder)
            verdict = read_verdict(reply, compare=compare)
            if verdict is not None:
                return verdict
            self.unreadable += 1
        raise JudgeFailed(f"{self.identity} gave no verdict that can be read, twice; the second reply: {reply[:80]!r}")
