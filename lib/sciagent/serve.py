"""A toolset for any MCP client: `python -m lib.sciagent.serve fluids ht` (Model Context Protocol, standard streams).

Three tools are offered: `find_functions` for a question, `call_function`, and `run_program`, which runs Python with
named functions at hand in the sandbox; with `--each` every function is a tool of its own as well. It needs the official
SDK (`pip install mcp`).
"""

import argparse
import asyncio
import json
from typing import Any

from lib import TenfoldError
from lib.sciagent.calling import dispatch
from lib.sciagent.sandbox import Execution, Sandbox
from lib.sciagent.tools import Toolset

TEXT = {"type": "string"}
OWN_TOOLS = {
    "find_functions": (
        "Find the scientific functions that serve a question; returns their schemas, best first.",
        {"query": TEXT, "number": {"type": "integer", "default": 5}}, ["query"],
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
            if name == "find_functions":
                found = self.index.search([str(arguments["query"])], int(arguments.get("number", 5)))[0]
                return json.dumps([self.tools[n].schema()["function"] for n in found]), False
            if name == "call_function":
                return _told(dispatch(self.tools, self.sandbox, arguments["name"], arguments["arguments"]))
            if name == "run_program":
                job = self.tools.job(arguments["program"], arguments.get("functions", []))
                return _told(self.sandbox.map([job])[0])
        except KeyError as error:
            return f"{name} needs {error}, or there is no function of that name.", True
        if self.each:
            return _told(dispatch(self.tools, self.sandbox, name, arguments))
        return f"there is no tool {name!r}: use {', '.join(OWN_TOOLS)}.", True

    def server(self) -> Any:
        """Make the SDK's server of it."""
        from mcp import types
        from mcp.server import Server

        async def list_tools(_context: Any, _parameters: Any) -> Any:
            rows = self.listed()
            return types.ListToolsResult(
                tools=[types.Tool(name=n, description=d, input_schema=schema) for n, d, schema in rows]
            )

        async def call_tool(_context: Any, parameters: Any) -> Any:
            text, failed = await asyncio.to_thread(self.call, parameters.name, dict(parameters.arguments or {}))
            return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=failed)

        return Server("tenfold-sciagent", on_list_tools=list_tools, on_call_tool=call_tool)


def _told(outcome: Execution) -> tuple[str, bool]:
    if not outcome.ok:
        return outcome.error, True
    return json.dumps({"value": outcome.value} | ({"stdout": outcome.stdout} if outcome.stdout else {})), False


async def serve(server: Any) -> None:
    """Serve one client on the standard streams."""
    from mcp.server.stdio import stdio_server

    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())


def main(arguments: list[str] | None = None) -> None:
    """Harvest the packages named, and serve their functions."""
    parser = argparse.ArgumentParser(prog="python -m lib.sciagent.serve", description=__doc__.splitlines()[0])
    parser.add_argument("packages", nargs="+", help="installed libraries whose functions are offered")
    parser.add_argument("--each", action="store_true", help="offer every function as a tool of its own, too")
    parser.add_argument("--untested", action="store_true", help="take functions without a doctest")
    parser.add_argument("--allow-weaker", action="store_true", help="serve where the machine isolates less")
    given = parser.parse_args(arguments)
    try:
        import mcp  # noqa: F401
    except ModuleNotFoundError:
        parser.exit(1, "serving needs the MCP SDK: pip install mcp\n")
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
