"""The sandbox against hostile programs, layer by layer, and what users see of it."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sciagent_hostile import ESCAPED, ESCAPING_THE_SYNTAX, PROGRAMS

from lib import TenfoldError
from lib.lab import keys
from lib.sciagent import Limits, ProgramRefused, Sandbox, sandbox
from lib.sciagent.program import calls, checked

LIMITS = Limits(seconds=0.7, cpu_seconds=0.6, memory_mib=128)
SLACK = 1.5  # seconds for a busy machine, beyond a program's own limit


@pytest.fixture(scope="module")
def pool():
    with Sandbox(workers=1, limits=LIMITS) as opened:
        yield opened


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A file, a listening port and a count of connections that no program may reach."""
    canary = tmp_path_factory.mktemp("outside") / "canary"
    canary.write_text("untouched")
    canary.chmod(0o666)
    for folder in canary.parents[:3]:
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(0o777)
    server, connections = socket.create_server(("127.0.0.1", 0)), []

    def accept():
        while True:
            try:
                connections.append(server.accept())
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    yield canary, server.getsockname()[1], connections
    server.close()


def needs_isolation(pool):
    missing = {"network", "processes", "files", "user", "system calls"} - set(pool.layers)
    if missing:
        pytest.skip(f"this kernel does not isolate {', '.join(sorted(missing))}")


def test_there_are_fifty():
    assert len(PROGRAMS) >= 50


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_hostile_program_neither_escapes_nor_blocks_nor_spoils_the_next(name, pool, outside):
    needs_isolation(pool)
    canary, port, connections = outside
    source = PROGRAMS[name].replace("CANARY", str(canary)).replace("PORT", str(port))
    source = source.replace("PARENT", str(os.getpid()))
    began = time.monotonic()
    outcome = pool.run_unchecked(source)
    assert time.monotonic() - began < LIMITS.seconds + sandbox.GRACE_SECONDS + SLACK
    assert ESCAPED not in outcome.stdout, outcome
    assert canary.read_text() == "untouched"
    assert connections == []
    after = pool.run("y = sqrt(16.0) + abs(-1)\ny")
    assert (after.kind, after.value) == ("ok", 5.0), (outcome, after)
    left = pool.run_unchecked("import os\n[os.listdir('.'), os.getpid()]")
    assert left.value[0] == [], "the next program starts in an empty folder"


@pytest.mark.parametrize(
    "name", ["read a file outside", "open a socket", "connect to this machine", "one fork", "threads", "run a command"]
)
def test_outside_the_sandbox_the_same_program_gets_what_it_wants(name, outside):
    canary, port, connections = outside
    source = PROGRAMS[name].replace("CANARY", str(canary)).replace("PORT", str(port)).replace("args=(60,)", "args=(0,)")
    done = subprocess.run([sys.executable, "-I", "-c", source], capture_output=True, text=True, timeout=30)
    assert ESCAPED in done.stdout
    connections.clear()


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_first_layer_refuses_every_hostile_program_but_plain_arithmetic(name):
    source = PROGRAMS[name].replace("PORT", "1").replace("PARENT", "1")
    if name in ("long arithmetic", "one huge object", "huge answer"):
        checked(source, functions=())  # the limits are for these
    else:
        with pytest.raises(ProgramRefused):
            checked(source, functions=())


def test_arithmetic_without_end_is_ended_and_the_pool_goes_on(pool):
    assert pool.run("x = 9 ** 9 ** 9").kind == "time"
    assert pool.run("x = 'x' * 10 ** 12").kind == "memory"
    assert pool.run("sum([1, 2])").value == 3


def test_no_process_of_a_program_is_left(pool):
    needs_isolation(pool)
    for name in ("fork bomb", "child that outlives", "deaf to signals", "zombie children"):
        pool.run_unchecked(PROGRAMS[name])
    group = pool._workers[0].process.pid
    alive = [p for p in Path("/proc").iterdir() if p.name.isdigit() and _session(p) == group]
    assert len(alive) <= 2, "the waiting process and the worker"


def _session(process):
    try:
        return int((process / "stat").read_text().rsplit(")", 1)[1].split()[3])
    except OSError:
        return None


@pytest.mark.parametrize("name", ESCAPING_THE_SYNTAX)
def test_what_leaves_the_subset_is_refused_in_one_sentence(name):
    with pytest.raises(ProgramRefused) as refusal:
        checked(ESCAPING_THE_SYNTAX[name], functions=["tool"])
    assert "\n" not in str(refusal.value)


def test_the_subset_says_which_functions_there_are():
    with pytest.raises(ProgramRefused, match="'other' was not shown: call one of near, tool"):
        checked("other(2)", functions=["tool", "near"])


def test_calls_are_found_in_order_of_writing():
    tree = checked("a = f(1)\nb = g(f(a)) + max(a, 2)\nprint(b)", functions=["f", "g"])
    assert calls(tree, ["f", "g"]) == ["f", "g", "f"]


def test_a_program_of_the_subset_gives_its_last_value_and_its_prints(pool):
    source = "xs = [i ** 2 for i in range(4)]\nprint(f'{sum(xs):.1f}')\nanswer = {'sum': sum(xs), 'pair': (1, 2.5)}"
    outcome = pool.run(source)
    assert outcome.value == {"sum": 14, "pair": [1, 2.5]}
    assert outcome.stdout == "14.0\n"
    assert pool.run("round(pi, 3)").value == 3.142
    assert pool.run("1 / 0").error == "ZeroDivisionError: division by zero (line 1)"


def test_tools_are_called_by_name_and_nothing_else_is_there(pool):
    assert pool.run("gcd(12, 18)", tools={"gcd": "math:gcd"}).value == 6
    assert pool.run("double(4)", sources={"double": "def double(x):\n    return 2 * x"}).value == 8
    assert "ModuleNotFoundError" in pool.run("f(1)", tools={"f": "no_such_module:f"}).error


def test_programs_do_not_see_each_others_names(pool):
    assert pool.run("secret = 4").ok
    assert pool.run("secret").kind == "refused"


def test_many_programs_keep_their_order():
    with Sandbox(workers=2, limits=LIMITS) as two:
        jobs = [sandbox.Job(f"{i} * 2") for i in range(60)]
        assert [outcome.value for outcome in two.map(jobs)] == [2 * i for i in range(60)]


def test_a_worker_that_dies_is_replaced(pool):
    worker = pool._workers[0]
    os.killpg(worker.process.pid, signal.SIGKILL)
    before = pool.replaced
    assert pool.run("1 + 1").kind == "killed"
    assert pool.run("1 + 1").value == 2
    assert pool.replaced == before + 1
    assert not worker.folder.exists()


def test_the_environment_does_not_enter(pool, monkeypatch):
    monkeypatch.setenv("TENFOLD_SECRET", "x")
    with Sandbox() as fresh:
        names = fresh.run_unchecked("import os, sys\n[sorted(os.environ), sys.flags.isolated]").value
    assert "TENFOLD_SECRET" not in names[0]
    assert names[1] == 1


def test_limits_of_one_program(pool):
    assert pool.run_unchecked("x = bytearray(400_000_000)").kind == "memory"
    assert pool.run_unchecked("x = bytearray(400_000_000)", limits=Limits(memory_mib=600)).ok
    assert pool.run_unchecked("print('x' * 30_000)").kind == "output"
    error = pool.run_unchecked("open('f', 'wb').write(b'0' * 4_000_000)")
    assert error.kind in ("error", "killed"), "RLIMIT_FSIZE sends SIGXFSZ or refuses"
    assert pool.run_unchecked("import time\ntime.sleep(5)").error == "ran longer than 0.7 s"


def test_it_says_what_is_missing():
    with pytest.raises(TenfoldError, match="could not start .*no_such_library"):
        Sandbox(preload=["no_such_library"])
    with pytest.raises(TenfoldError, match="does not isolate teleport"):
        Sandbox(required=["teleport"])
    closed = Sandbox()
    closed.close()
    with pytest.raises(TenfoldError, match="closed"):
        closed.run("1")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="namespaces are Linux's")
def test_layers_reported_are_layers_there(pool):
    if "network" in pool.layers:
        found = pool.run_unchecked(
            "import os\nos.listdir('/sys/class/net') if os.path.isdir('/sys') else ['none']"
        ).value
        assert found in (["none"], ["lo"])
    if "processes" in pool.layers:
        assert pool.run_unchecked("import os\nos.getppid()").value == 1
    if "user" in pool.layers:
        assert pool.run_unchecked("import os\nos.getuid()").value != 0


def test_its_fingerprint_holds_what_runs_in_the_workers(warm, pool):
    versions, limits = warm.fingerprint()
    assert set(versions) == set(warm.preload)
    assert all(versions.values())
    inside = {f"lib.sciagent.inside.{name}" for name in ("worker", "harvest", "isolation")}
    assert inside <= keys.reach("lib.sciagent.sandbox"), "an edit of what the workers run is another key"
    assert pool.fingerprint()[1] != limits
