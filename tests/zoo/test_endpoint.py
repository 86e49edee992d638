"""The chat client against a scripted local server: choices, repetitions, refusals, time-outs and lost connections."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lib.zoo.endpoint import NO_COMPLETION, NO_CONNECTION, TIME_OUT, Completion, EndpointFailed, chat_completion

CHOICES = [{"message": {"content": text}} for text in ("one", "two")]
GOOD = {"choices": CHOICES, "usage": {"completion_tokens": 9}}


class Scripted(BaseHTTPRequestHandler):
    """Answers with the server's next (status, body, delay); keeps what it was asked."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers.get("Authorization"), json.loads(body)))
        status, answer, delay = self.server.script.pop(0)
        time.sleep(delay)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    found = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    found.asked, found.script = [], []
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def address(server):
    return f"http://127.0.0.1:{server.server_port}/v1/"


def test_choices_and_tokens_come_back_and_the_key_is_sent(server):
    server.script = [(200, GOOD, 0), (200, {"choices": CHOICES[:1]}, 0)]
    assert chat_completion(address(server), {"model": "m"}, key="k") == Completion(("one", "two"), 9)
    assert chat_completion(address(server), {"model": "m"}) == Completion(("one",), 0)
    assert server.asked == [("/v1/chat/completions", auth, {"model": "m"}) for auth in ("Bearer k", None)]


def test_what_may_pass_is_asked_again(server):
    server.script = [(503, {}, 0), (429, {}, 0), (200, b"not json", 0), (200, GOOD, 0)]
    assert chat_completion(address(server), {}, tries=4, pause=0).texts == ("one", "two")
    assert len(server.asked) == 4


@pytest.mark.parametrize(("status", "final"), [(401, True), (404, True), (503, False)])
def test_a_refusal_for_good_ends_at_once(server, status, final):
    server.script = [(status, {}, 0)] * 2
    with pytest.raises(EndpointFailed, match=str(status)) as failed:
        chat_completion(address(server), {}, tries=2, pause=0)
    assert (failed.value.status, failed.value.final) == (status, final)
    assert len(server.asked) == (1 if final else 2)


@pytest.mark.parametrize("body", [b"", b"[]", {}, {"choices": []}, {"choices": [{"message": {"content": None}}]}])
def test_an_answer_without_text_is_no_completion(server, body):
    server.script = [(200, body, 0)]
    with pytest.raises(EndpointFailed) as failed:
        chat_completion(address(server), {})
    assert (failed.value.reason, failed.value.final) == (NO_COMPLETION, False)


def test_a_slow_server_and_an_absent_one_are_told_apart(server):
    server.script = [(200, GOOD, 0.5)]
    with pytest.raises(EndpointFailed) as failed:
        chat_completion(address(server), {}, seconds=0.1)
    assert failed.value.reason == TIME_OUT
    with pytest.raises(EndpointFailed) as failed:
        chat_completion("http://127.0.0.1:9/v1", {})
    assert failed.value.reason == NO_CONNECTION


def test_a_budget_stops_before_the_request(server):
    def spent():
        raise RuntimeError("spent")

    with pytest.raises(RuntimeError, match="spent"):
        chat_completion(address(server), {}, before_try=spent)
    assert not server.asked
