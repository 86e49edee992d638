"""Candidates: what is refused and counted, variants made by rules, meta-prompts against a scripted endpoint."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from lib import TenfoldError
from lib.autoinstruct.generation import (
    FEW_SHOT,
    ZERO_SHOT,
    Budget,
    BudgetSpent,
    Candidate,
    Endpoint,
    WorkedTask,
    collect,
    format_line,
    generate,
    meta_prompt,
    style_of,
    variants,
)
from lib.autoinstruct.prompts import Demonstration

DEMOS = (Demonstration("2 + 2", "4"), Demonstration("3 + 9", "12"))
WORKED = {
    style: [
        WorkedTask(
            f"Reverse words like {style}.", (Demonstration("abc", "cba"),), "Write the letters of the word backwards."
        )
    ]
    for style in FEW_SHOT
    if style.startswith("worked")
}


def texts(*made):
    return [Candidate(text, "rule", "x") for text in made]


def test_unusable_candidates_are_refused_and_counted():
    made = texts("Add.", " add ", "", "...", "2 + 2", "Input: 3 + 9\nOutput: 12", "word " * 300, "Sum up the numbers.")
    found = collect(made, demonstrations=DEMOS)
    assert [c.text for c in found.candidates] == ["Add.", "Sum up the numbers."]
    assert found.refused == {"duplicate": 1, "empty": 2, "copied": 2, "too long": 1}
    assert len(found) == 2


@pytest.mark.parametrize(
    ("answers", "line"),
    [
        (["Yes", "No", "Yes", "No"], "exactly one of: No, Yes"),
        (["4", "-1.5", "1,200"], "a number only"),
        (["A", "c", "D"], "a single letter only"),
        (["[4]", "[x y]"], "between [ and ]"),
        (["Paris", "Rome", "Oslo"], "a single word only"),
        (["New York", "San Juan City"], "at most 3 words"),
    ],
)
def test_the_form_of_answers_is_read_off_the_demonstrations(answers, line):
    assert line in format_line([Demonstration("x", answer) for answer in answers])


def test_a_form_needs_demonstrations():
    with pytest.raises(ValueError, match="at least one"):
        format_line([])


def test_variants_have_a_style_each_and_keep_the_seed():
    made = variants("Add the numbers.", DEMOS)
    assert len({c.style for c in made}) == len(made) == len(collect(made))
    assert all(c.origin == "rule" for c in made)
    assert sum("Add the numbers." in c.text for c in made) == len(made) - 2  # not in format-only, examples-only


def test_a_style_is_read_off_an_instructions_form():
    assert style_of("Add the numbers.") == "one-sentence"
    assert style_of("Add the numbers. Reply briefly.") == "one-paragraph"
    assert style_of("First read, then add.") == "step-by-step"
    assert style_of("Add. For example, 1 and 2 give 3.") == "use-example"


def test_meta_prompts_hold_the_task_and_examples_of_their_set():
    for style in FEW_SHOT:
        prompt = meta_prompt(style, "Add.", DEMOS, worked=WORKED.get(style, ()))
        assert "Task: Add." in prompt
        assert "Input: 3 + 9\nOutput: 12" in prompt
        assert prompt.endswith("Instruction:")
    assert "Input:" not in meta_prompt("worked-tasks-1", "Add.", worked=WORKED["worked-tasks-1"])
    assert set(FEW_SHOT) - set(ZERO_SHOT) == {"use-example"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"style": "poem", "task": "Add."}, "no style 'poem'"),
        ({"style": "use-example", "task": "Add."}, "give demonstrations"),
        ({"style": "worked-tasks-1", "task": "Add."}, "give some"),
    ],
)
def test_bad_meta_prompts_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        meta_prompt(**arguments)


class Scripted(BaseHTTPRequestHandler):
    """Chat completions that number their answers; the first statuses of `script` are sent before it behaves."""

    def do_POST(self):
        server = self.server
        server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        server.keys.append(self.headers.get("Authorization"))
        status = server.script.pop(0) if server.script else 200
        request = server.asked[-1]
        choices = [{"message": {"content": f"Instruction {len(server.asked)}.{i}"}} for i in range(request["n"])]
        body = {"choices": choices, "usage": {"completion_tokens": 5 * request["n"]}}
        sent = json.dumps(server.body if server.body is not None else body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = HTTPServer(("127.0.0.1", 0), Scripted)
    server.asked, server.keys, server.script, server.body = [], [], [], None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def endpoint(server, **options):
    return Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "scripted", pause=0.0, **options)


def test_the_papers_22_and_19_candidates(server):
    few = generate(endpoint(server), "Add.", DEMOS, worked=WORKED)
    assert len(few) == 22
    assert few.candidates[0] == Candidate("Add.", "human", "human")
    assert {c.style for c in few.candidates[1:]} == set(FEW_SHOT)
    assert len(server.asked) == 7
    assert server.asked[0]["temperature"] == 1.0
    assert len(generate(endpoint(server), "Add.", worked=WORKED)) == 19


def test_nothing_is_asked_twice_also_after_a_crash(server, tmp_path):
    cache = tmp_path / "answers.jsonl"
    poor = endpoint(server, cache=cache, budget=Budget(requests=2))
    with pytest.raises(BudgetSpent, match="2 of 2 requests"):
        generate(poor, "Add.", DEMOS, worked=WORKED)
    assert len(server.asked) == 2
    with cache.open("a") as file:
        file.write('{"key": "cut o')  # what a power cut leaves
    rich = endpoint(server, cache=cache)
    found = generate(rich, "Add.", DEMOS, worked=WORKED)
    assert len(server.asked) == 7
    assert rich.budget.spent_requests == 5
    assert rich.budget.spent_tokens == 5 * 3 * 5
    assert generate(endpoint(server, cache=cache, budget=Budget(requests=0)), "Add.", DEMOS, worked=WORKED) == found


def test_a_token_budget_is_kept_before_asking(server):
    with pytest.raises(BudgetSpent, match="of 100 tokens"):
        endpoint(server, budget=Budget(tokens=100)).complete("x", max_tokens=101)
    assert server.asked == []


def test_a_busy_endpoint_is_asked_again_and_a_refusal_is_not(server, monkeypatch):
    server.script = [429, 503]
    assert endpoint(server).complete("x") == ["Instruction 3.0"]
    server.script = [401]
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with pytest.raises(TenfoldError, match="status 401: check \\$OPENAI_API_KEY"):
        endpoint(server).complete("y")
    assert server.keys[-1] == "Bearer secret"
    assert len(server.asked) == 4


def test_other_services_and_absent_ones_are_named(server):
    server.body = {"hello": "world"}
    with pytest.raises(TenfoldError, match="does not speak"):
        endpoint(server).complete("x")
    away = Endpoint("http://127.0.0.1:9/v1", "x", tries=1)
    with pytest.raises(TenfoldError, match="is it running"):
        away.complete("x")
