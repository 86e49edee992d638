"""Toolsets for others: calls by JSON, a model that calls, and a server for MCP clients.

`python -m lib.sciagent.serve fluids ht` serves the functions of libraries over the Model Context Protocol (standard
streams; it needs the official SDK, `pip install "mcp>=2"`, which the environment does not have). It offers
`find_functions` for a question, `call_function`, and `run_program`, which runs Python with named functions at hand in
the sandbox; with `--each` every function is a tool of its own as well. `dispatch` checks one call against the tool's
schema and runs it; `answer_by_calls` lets a chat model call one function after the other until it answers.
"""

import argparse
import asyncio
import difflib
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib import TenfoldError
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


# --- the server ---

TEXT = {"type": "string"}
OWN_TOOLS = {
    "find_functions": (
        "Find the scientific functions that serve a question; returns their schemas, best first.",
        {"query": TEXT, "number": {"type": "integer", "default": 5, "minimum": 1}}, ["query"],
    ),
    "call_function": (
        "Call a function that find_functions returned, with arguments by name in the units of its schema.",
        {"name": TEXT, "arguments": {"type": "object"}}, ["name", "arguments"],
    ),
    "run_program": (
        "Run a Python program in isolation (no files, no network) in which the named functions are defined; returns "
        "its variable `answer`, its last line's value or what it prints.",
        {"program": TEXT, "functions": {"type": "array", "items": TEXT, "default": []}}, ["program"],
    ),
}  # fmt: skip


class ToolServer:
    """The tools of a toolset, as MCP names them."""

    def __init__(self, tools: Toolset, sandbox: Sandbox, *, each: bool = False) -> None:
        from lib.sciagent.retriever import WordIndex

        self.tools, self.sandbox, self.each = tools, sandbox, each
        self.index = WordIndex([t.name for t in tools], [t.indexed() for t in tools])

    def listed(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Name, description and input schema of what is offered."""
        own = [
            (name, text, {"type": "object", "properties": properties, "required": required})
            for name, (text, properties, required) in OWN_TOOLS.items()
        ]
        functions = [tool.schema()["function"] for tool in self.tools] if self.each else []
        return own + [(f["name"], f["description"], f["parameters"]) for f in functions]

    def call(self, name: str, arguments: dict[str, Any]) -> tuple[str, bool]:
        """Text that answers a call, and whether it is an error."""
        try:
            given = _own_arguments(name, arguments) if name in OWN_TOOLS else {}
            strange = [repr(n) for n in given.get("functions", []) if n not in self.tools]
            if strange:
                raise CallRefused(f"there is no function {', '.join(strange)}: find_functions gives their names.")
        except CallRefused as error:
            return str(error), True
        if name == "find_functions":
            found = self.index.search([given["query"]], given["number"])[0]
            return json.dumps([self.tools[n].schema()["function"] for n in found]), False
        if name == "call_function":
            return _told(dispatch(self.tools, self.sandbox, given["name"], given["arguments"]))
        if name == "run_program":
            return _told(self.sandbox.map([self.tools.job(given["program"], given["functions"])])[0])
        if self.each:
            return _told(dispatch(self.tools, self.sandbox, name, arguments))
        return f"there is no tool {name!r}: use {', '.join(OWN_TOOLS)}.", True

    def server(self) -> Any:
        """Make the SDK's server of it."""
        from mcp import types  # pyright: ignore[reportMissingImports]
        from mcp.server import Server  # pyright: ignore[reportMissingImports]

        async def list_tools(_context: Any, _parameters: Any) -> Any:
            rows = self.listed()
            return types.ListToolsResult(
                tools=[types.Tool(name=n, description=d, input_schema=schema) for n, d, schema in rows]
            )

        async def call_tool(_context: Any, parameters: Any) -> Any:
            text, failed = await asyncio.to_thread(self.call, parameters.name, dict(parameters.arguments or {}))
            return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=failed)

        return Server("tenfold-sciagent", on_list_tools=list_tools, on_call_tool=call_tool)


def _own_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of one of `OWN_TOOLS` as its schema says, with defaults; raises CallRefused."""
    _, properties, required = OWN_TOOLS[name]
    given = {p: schema["default"] for p, schema in properties.items() if "default" in schema}
    given |= {p: value for p, value in arguments.items() if value is not None}
    if missing := [p for p in required if p not in given]:
        raise CallRefused(f"{name} needs {', '.join(missing)}.")
    for p in given.keys() & properties.keys():
        kind, value = properties[p]["type"], given[p]
        if kind == "integer" and str(value).strip().isdecimal():
            given[p] = value = int(value)
        fits = {
            "string": isinstance(value, str),
            "integer": type(value) is int and value >= properties[p].get("minimum", value),
            "array": isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value),
            "object": isinstance(value, (Mapping, str)),  # a text is read as JSON
        }[kind]
        if not fits:
            what = {"string": "a text", "integer": "a whole number from 1", "array": "a list of names"}
            raise CallRefused(f"{p} of {name} is {what.get(kind, 'an object of arguments by name')}, not {value!r}.")
    return given


def _told(outcome: Execution) -> tuple[str, bool]:
    if not outcome.ok:
        return outcome.error, True
    return json.dumps({"value": outcome.value} | ({"stdout": outcome.stdout} if outcome.stdout else {})), False


async def serve(server: Any) -> None:
    """Serve one client on the standard streams."""
    from mcp.server.stdio import stdio_server  # pyright: ignore[reportMissingImports]

    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())


def main(arguments: list[str] | None = None) -> None:
    """Harvest the packages named, and serve their functions."""
    parser = argparse.ArgumentParser(prog="python -m lib.sciagent.serve", description="Serve libraries' functions.")
    parser.add_argument("packages", nargs="+", help="installed libraries whose functions are offered")
    parser.add_argument("--each", action="store_true", help="offer every function as a tool of its own, too")
    parser.add_argument("--untested", action="store_true", help="take functions without a doctest")
    parser.add_argument("--allow-weaker", action="store_true", help="serve where the machine isolates less")
    given = parser.parse_args(arguments)
    if importlib.util.find_spec("mcp") is None:
        parser.exit(1, 'serving needs the MCP SDK: pip install "mcp>=2"\n')
    try:
        with Sandbox(preload=[*given.packages, "numpy"], allow_weaker=given.allow_weaker) as sandbox:
            tools = Toolset()
            for package in given.packages:
                tools = tools | Toolset.from_package(package, sandbox=sandbox, untested=given.untested)
            asyncio.run(serve(ToolServer(tools, sandbox, each=given.each).server()))
    except TenfoldError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
