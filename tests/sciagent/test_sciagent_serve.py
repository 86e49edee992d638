"""Calls by JSON: the dispatcher, a chat model that calls, and a real MCP client's session."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from lib.core.chat import Reply
from lib.sciagent import serve

LMTD = {"Thi": 100, "Tho": 60, "Tci": 30, "Tco": 40.2}


def test_a_call_runs_with_json_arguments_or_their_text(tools, warm):
    assert serve.dispatch(tools, warm, "LMTD", LMTD).value == pytest.approx(43.200409294131525)
    assert serve.dispatch(tools, warm, "LMTD", json.dumps(LMTD)).value == pytest.approx(43.200409294131525)
    said = LMTD | {"Thi": "100 K", "Tho": "-213.15 degC"}
    assert serve.dispatch(tools, warm, "LMTD", said).value == pytest.approx(43.200409294131525)


@pytest.mark.parametrize(("name", "arguments", "message"), [
    ("LMDT", LMTD, "no function 'LMDT': did you mean LMTD?"),
    ("LMTD", {**LMTD, "x": 1}, "LMTD has no x"),
    ("LMTD", {"Thi": 1}, "LMTD needs Tho, Tci, Tco: call LMTD(Thi, Tho, Tci, Tco"),
    ("LMTD", "{", "are no JSON"),
    ("LMTD", "[1]", "must be an object"),
    ("LMTD", LMTD | {"Thi": "warm"}, "Thi of LMTD is a number in K, not 'warm'"),
    ("LMTD", LMTD | {"Thi": "3 m"}, "Thi of LMTD is a number in K"),
])  # fmt: skip
def test_a_call_that_does_not_fit_is_refused_in_one_sentence(tools, warm, name, arguments, message):
    outcome = serve.dispatch(tools, warm, name, arguments)
    assert outcome.kind == "refused"
    assert message in outcome.error


class Scripted:
    """A chat that says what it is told, and keeps the dialogues."""

    model = "scripted"

    def __init__(self, *texts):
        self.texts, self.asked = list(texts), []

    def complete(self, messages, decoding=None, *, attempt=0):
        self.asked.append(json.dumps(messages))
        return Reply((self.texts.pop(0),))


def call(name, arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def test_a_model_calls_until_it_answers(tools, warm):
    chat = Scripted(call("LMTD", {"Thi": 1}), call("LMTD", LMTD), "So the\nANSWER: 43.2 K")
    trace = serve.answer_by_calls(chat, "Mean difference?", ["LMTD"], tools, warm)
    assert [outcome.kind for _, outcome in trace.calls] == ["refused", "ok"]
    assert trace.answer == "43.2 K"
    assert "LMTD needs Tho" in chat.asked[1]
    assert "43.2004" in chat.asked[2]
    only = serve.answer_by_calls(Scripted(call("fv", {}), "no"), "q", ["LMTD"], tools, warm)
    assert "no function 'fv'" in only.calls[0][1].error, "what was not shown is not offered"
    assert only.answer == ""
    for_ever = serve.answer_by_calls(Scripted(*[call("LMTD", LMTD)] * 9), "q", ["LMTD"], tools, warm, most=2)
    assert len(for_ever.calls) == 2


def test_what_a_server_offers_without_its_protocol(tools, warm):
    own = serve.ToolServer(tools, warm)
    assert [name for name, _, _ in own.listed()] == ["find_functions", "call_function", "run_program"]
    found, failed = own.call("find_functions", {"query": "log mean temperature difference", "number": 3})
    assert not failed
    assert "LMTD" in [f["name"] for f in json.loads(found)]
    assert (
        own.call("run_program", {"program": "x = LMTD(100, 60, 30, 40.2)\nprint(x)", "functions": ["LMTD"]})[1] is False
    )
    assert own.call("run_program", {"program": "import os"})[1]
    assert own.call("run_program", {"program": "LMTD(100, 60, 30, 40.2)", "functions": None})[1]  # LMTD is not defined
    assert json.loads(own.call("find_functions", {"query": "heat", "number": "2"})[0])[1:]
    assert own.call("LMTD", LMTD)[1]
    assert not serve.ToolServer(tools, warm, each=True).call("LMTD", LMTD)[1]


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("call_function", {"name": "LMTD"}, "call_function needs arguments."),
        ("find_functions", {}, "find_functions needs query."),
        ("find_functions", {"query": "heat", "number": -1}, "number of find_functions is a whole number from 1, not"),
        ("find_functions", {"query": "heat", "number": "many"}, "a whole number from 1, not 'many'"),
        ("run_program", {"program": 3}, "program of run_program is a text, not 3."),
        ("run_program", {"program": "1", "functions": "LMTD"}, "is a list of names, not 'LMTD'"),
        ("run_program", {"program": "1", "functions": ["lmdt"]}, "there is no function 'lmdt'"),
        ("call_function", {"name": "LMTD", "arguments": [1]}, "is an object of arguments by name, not [1]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_servers_own_tools_is_said_in_one_sentence(tools, warm, name, arguments, said):
    text, failed = serve.ToolServer(tools, warm).call(name, arguments)
    assert failed
    assert said in text


def test_an_mcp_client_lists_finds_calls_and_is_refused(tmp_path):
    mcp = pytest.importorskip("mcp", reason="the MCP SDK is optional: pip install 'mcp>=2'")
    root = Path(serve.__file__).parents[2]
    parameters = mcp.StdioServerParameters(
        command=sys.executable, args=["-m", "lib.sciagent.serve", "numpy_financial", "--each", "--allow-weaker"],
        env=os.environ | {"PYTHONPATH": str(root)}, cwd=str(root),
    )  # fmt: skip

    async def session():
        async with mcp.Client(parameters) as client:
            listed = (await client.list_tools()).tools
            ask = client.call_tool
            return listed, [
                await ask("find_functions", {"query": "present value of payments", "number": 4}),
                await ask("call_function", {"name": "fv", "arguments": {"rate": 0.1, "nper": 2, "pmt": -1, "pv": -10}}),
                await ask("fv", {"rate": "10 %", "nper": 2, "pmt": -1, "pv": -10}),
                await ask("run_program", {"program": "print(2 * fv(0.1, 2, -1, -10))", "functions": ["fv"]}),
                await ask("run_program", {"program": "open('/etc/passwd').read()"}),
                await ask("fv", {"rate": 0.1}),
            ]  # fmt: skip

    listed, replies = asyncio.run(session())
    by_name = {tool.name: tool for tool in listed}
    assert {"find_functions", "call_function", "run_program", "fv", "irr"} <= set(by_name)
    assert by_name["irr"].input_schema["properties"]["values"]["type"] == "array"
    texts = [reply.content[0].text for reply in replies]
    assert [bool(reply.is_error) for reply in replies] == [False, False, False, False, True, True]
    assert "pv" in [f["name"] for f in json.loads(texts[0])]
    assert json.loads(texts[1])["value"] == pytest.approx(14.2)
    assert json.loads(texts[2])["value"] == pytest.approx(14.2)
    assert json.loads(texts[3])["value"] == pytest.approx(28.4)
    assert "fv needs nper, pmt, pv" in texts[5]
