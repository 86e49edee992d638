"""Calls of tools by name and JSON arguments, as function-calling models, other agents and MCP clients make them.

`dispatch` checks a call against the tool's schema and runs it in the sandbox; `answer_by_calls` lets a chat model call
one function after the other until it answers.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib.core.chat import Chat, Decoding
from lib.sciagent.quantities import in_unit, quantity
from lib.sciagent.sandbox import Execution, Sandbox
from lib.sciagent.tools import Parameter, Tool, Toolset

CALL = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.S)
ANSWER = re.compile(r"ANSWER\s*:\s*(.+)", re.I)
TO_CALL = (
    "Answer the question. You may call one function at a time, by writing only\n"
    '<tool_call>{"name": "...", "arguments": {...}}</tool_call>\nwith numbers in the units that its schema says; the '
    "result is shown to you. When you know the answer, write ANSWER: and the number with its unit. Functions:\n"
)


class CallRefused(ValueError):
    """A call does not fit the tool's schema; the message says what does."""


def dispatch(tools: Toolset, sandbox: Sandbox, name: str, arguments: Mapping[str, Any] | str) -> Execution:
    """Call a tool with JSON arguments (or their text); a call that does not fit is `refused` in one sentence."""
    try:
        tool, given = checked_call(tools, name, arguments)
    except CallRefused as error:
        return Execution("refused", error=str(error))
    job = tools.job(f"answer = {tool.call(given)}", [name])
    return sandbox.map([job])[0]


def checked_call(tools: Toolset, name: str, arguments: Mapping[str, Any] | str) -> tuple[Tool, dict[str, Any]]:
    """Return the tool and its arguments in the order of its parameters; raises CallRefused.

    A number written as text ("20 kPa") is read, in the parameter's unit.
    """
    if name not in tools:
        near = difflib.get_close_matches(name, [t.name for t in tools], 3)
        raise CallRefused(f"there is no function {name!r}{': did you mean ' + ', '.join(near) + '?' if near else '.'}")
    tool = tools[name]
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            raise CallRefused(f"the arguments of {name} are no JSON ({error}).") from None
    if not isinstance(arguments, Mapping):
        raise CallRefused(f"the arguments of {name} must be an object, such as {{{tool.signature()}}}.")
    known = {p.name: p for p in tool.parameters}
    strange = [a for a in arguments if a not in known]
    missing = [p.name for p in tool.parameters if p.required and p.name not in arguments]
    if strange or missing:
        said = [f"has no {', '.join(strange)}"] * bool(strange) + [f"needs {', '.join(missing)}"] * bool(missing)
        raise CallRefused(f"{name} {' and '.join(said)}: call {tool.signature()}.")
    return tool, {p: _fitting(tool, known[p], arguments[p]) for p in known if p in arguments}


def _fitting(tool: Tool, p: Parameter, value: Any) -> Any:
    """The value as the parameter's type; raises CallRefused where it is none."""
    if value is None and not p.required:
        return value
    if p.options and value not in p.options:
        raise CallRefused(f"{p.name} of {tool.name} is one of {', '.join(map(repr, p.options))}, not {value!r}.")
    if p.kind in ("number", "integer") and isinstance(value, str):
        read = quantity(value)
        number = None if read.value is None else in_unit(read.value, read.unit, p.unit)
        if number is None:
            raise CallRefused(f"{p.name} of {tool.name} is a number{f' in {p.unit}' if p.unit else ''}, not {value!r}.")
        return int(number) if p.kind == "integer" and number == int(number) else number
    wrong = {"string": not isinstance(value, str), "array": not isinstance(value, (list, tuple))}.get(p.kind, False)
    if wrong:
        raise CallRefused(f"{p.name} of {tool.name} is {'an' if p.kind == 'array' else 'a'} {p.kind}, not {value!r}.")
    return value


@dataclass(frozen=True)
class CallTrace:
    """What a model called, what came of it, and its answer ("" where it gave none)."""

    calls: tuple[tuple[str, Execution], ...]
    answer: str


def answer_by_calls(
    chat: Chat, question: str, shown: Sequence[str], tools: Toolset, sandbox: Sandbox, *, most: int = 4,
    decoding: Decoding | None = None,
) -> CallTrace:  # fmt: skip
    """Let a chat model answer a question by at most `most` calls of the functions shown."""
    decoding = decoding or Decoding(temperature=0.0, max_tokens=300)
    schemas = "\n".join(json.dumps(tools[name].schema()["function"]) for name in shown)
    dialogue = [{"role": "user", "content": f"{TO_CALL}{schemas}\n\nQuestion: {question}"}]
    made: list[tuple[str, Execution]] = []
    offered = tools.subset(shown)
    for _ in range(most + 1):
        text = chat.complete(dialogue, decoding).text
        called, answered = CALL.search(text), ANSWER.search(text)
        if answered and not called:
            return CallTrace(tuple(made), answered[1].strip())
        if not called or len(made) == most:
            break
        outcome = _called(called[1], offered, sandbox)
        made.append((called[1], outcome))
        result = json.dumps({"result": outcome.value}) if outcome.ok else json.dumps({"error": outcome.error})
        dialogue += [{"role": "assistant", "content": text}, {"role": "user", "content": f"Result: {result}"}]
    return CallTrace(tuple(made), "")


def _called(text: str, tools: Toolset, sandbox: Sandbox) -> Execution:
    try:
        call = json.loads(text)
        name, arguments = str(call["name"]), call.get("arguments", {})
    except (ValueError, KeyError, TypeError, AttributeError):
        return Execution("refused", error='a call is {"name": …, "arguments": {…}}')
    return dispatch(tools, sandbox, name, arguments)
