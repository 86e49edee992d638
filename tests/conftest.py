"""No test may reach for the hub, open a window, or write into the repository's own folders."""

import json
import os
import sys
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread

import nbformat  # noqa: F401 - first, since its import takes a second now and seven beside torch
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(autouse=True, scope="module")
def own_accelerator():
    """Accelerate keeps one precision for the whole process: no file's tests may leave theirs to the next file's."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state()


@pytest.fixture
def as_installed(monkeypatch):
    """Call `lib` as people do, without the checks of annotations that tests add: its own sentences refuse bad types."""
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)


def pytest_collection_modifyitems(items):
    """Whole notebooks first, half of them for each of two workers: what is short then fills their last minute evenly.

    A worker begins with one half of the list, and whoever is through takes from the end of the other's.
    """
    notebooks = [item for item in items if item.get_closest_marker("notebook")]
    short = [item for item in items if not item.get_closest_marker("notebook")]
    first, second = notebooks[::2], notebooks[1::2]
    begins = max(0, len(items) // 2 - len(first))
    items[:] = [*first, *short[:begins], *second, *short[begins:]]


def pytest_terminal_summary(terminalreporter, config):
    """Coverage of `lib/` by room, where `--cov` measured it; notebooks run in kernels of their own and do not count."""
    if config.getoption("cov_source", None) and not config.getoption("no_cov", False):
        terminalreporter.section("coverage of lib/ by unit tests")
        terminalreporter.write_line(", ".join(f"{room} {share:.0%}" for room, share in coverage_by_room().items()))


def coverage_by_room():
    from coverage import Coverage

    from lib import root

    measured = Coverage()
    measured.load()
    statements, missing = Counter(), Counter()
    for path in sorted((root() / "lib").rglob("*.py")):
        _, lines, _, left, _ = measured.analysis2(str(path))
        for room in ("total", path.relative_to(root() / "lib").parts[0].removesuffix(".py")):
            statements[room] += len(lines)
            missing[room] += len(left)
    return {room: 1 - missing[room] / count for room, count in statements.items() if count}


class ChatServer(ThreadingHTTPServer):
    """A server that speaks the OpenAI chat protocol, on this machine, from a script.

    Each request takes the script's next answer, or else `answer(request)`: a text or a list of texts (the choices), a
    dictionary (the body as JSON), bytes (the body as they are), a status, a status with headers, or `wire(bytes)`
    (what goes over the wire in place of an answer). `delay(seconds, answer)` answers late. `asked` keeps the requests.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), ChatHandler)
        self.script, self.asked, self.headers, self.paths = [], [], [], []
        self.answer, self.lock, self.over = lambda request: f"reply {len(self.asked)}", Lock(), Event()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    @staticmethod
    def wire(data):
        return "wire", data

    @staticmethod
    def delay(seconds, answer):
        return "delay", seconds, answer

    @property
    def questions(self):
        """The last message of each request."""
        return [request["messages"][-1]["content"] for request in self.asked]

    def handle_error(self, *_):
        pass  # a client that has given up


class ChatHandler(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(request)
            self.server.headers.append(dict(self.headers))
            self.server.paths.append(self.path)
            answer = self.server.script.pop(0) if self.server.script else self.server.answer(request)
        if isinstance(answer, tuple) and answer[0] == "delay":
            self.server.over.wait(answer[1])
            answer = answer[2]
        if isinstance(answer, tuple) and answer[0] == "wire":
            self.wfile.write(answer[1])
            self.close_connection = True
            return
        self._send(answer, request)

    def _send(self, answer, request):
        status, headers, body = 200, {}, answer
        if isinstance(answer, int | tuple):
            status, headers = answer if isinstance(answer, tuple) else (answer, {})
            body = {"error": {"message": "no"}}
        if isinstance(answer, str):
            body = [answer] * request.get("n", 1)
        if isinstance(body, list):
            choices = [{"message": {"content": text}, "finish_reason": "stop"} for text in body]
            body = {"choices": choices, "usage": {"completion_tokens": 5 * len(choices)}}
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": len(sent)} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_):
        pass


@pytest.fixture
def chat_server():
    """A scripted server of the OpenAI chat protocol (`ChatServer`)."""
    server = ChatServer()
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
