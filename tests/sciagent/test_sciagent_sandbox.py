"""The sandbox against hostile programs, layer by layer, and what users see of it."""

import os
import platform
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sciagent_scripts import SCRIPTS

from lib import TenfoldError
from lib.lab import keys
from lib.sciagent import Limits, ProgramRefused, Sandbox, sandbox
from lib.sciagent.inside import isolation
from lib.sciagent.program import called_in, checked, program_in, without_redefinitions
from lib.sciagent.study.hostile import (
    BLOCKING,
    CONTROLS,
    ESCAPED,
    ESCAPING_THE_SYNTAX,
    MORE_BLOCKING,
    POISONING,
    PROBE,
    PROGRAMS,
    aimed,
)

LIMITS = Limits(seconds=0.7, cpu_seconds=0.6, memory_mib=128)
SLACK = 1.5  # seconds for a busy machine, beyond a program's own limit
YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")

WAYS = ["namespaces", *(["bubblewrap"] if isolation.bubblewrap() else [])]


@pytest.fixture(scope="module", params=WAYS)
def each_pool(request):
    with Sandbox(limits=LIMITS, isolation=request.param, allow_weaker=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def pool():
    with Sandbox(limits=LIMITS, allow_weaker=True) as opened:
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


def told(name, canary, port):
    return aimed(PROGRAMS[name], canary=str(canary), port=port, parent=os.getpid())


def test_there_are_enough():
    assert len(PROGRAMS) + len(POISONING) >= 121
    assert len(CONTROLS) >= 50


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_hostile_program_neither_escapes_nor_blocks_nor_spoils_the_next(name, each_pool, outside):
    needs_isolation(each_pool)
    canary, port, connections = outside
    began = time.monotonic()
    outcome = each_pool.run(told(name, canary, port), mode="any")
    assert time.monotonic() - began < LIMITS.seconds + sandbox.GRACE_SECONDS + SLACK
    assert ESCAPED not in outcome.stdout, outcome
    assert canary.read_text() == "untouched"
    assert connections == []
    after = each_pool.run("import math, os\n[math.sqrt(16.0) + abs(-1), os.listdir('.')]", mode="any")
    assert (after.kind, after.value) == ("ok", [5.0, []]), (outcome, after)


@pytest.mark.parametrize("name", POISONING)
def test_what_a_program_changes_ends_with_it(name, each_pool):
    each_pool.run(POISONING[name], mode="any")
    after = each_pool.run(PROBE, mode="any")
    assert (after.kind, after.stdout.strip()) == ("ok", ""), after
    both = subprocess.run(
        [sys.executable, "-I", "-c", f"{POISONING[name]}\n{PROBE}"], capture_output=True, text=True, check=False
    )
    assert ESCAPED in both.stdout or both.returncode, "in one process it does spoil what comes after"


@pytest.mark.parametrize("name", CONTROLS)
def test_outside_the_sandbox_the_same_program_gets_what_it_wants(name, outside, tmp_path):
    canary, port, connections = outside
    source = told(name, canary, port).replace("args=(60,)", "args=(0,)")
    if "libc.syscall" in source and platform.machine() != "x86_64":
        pytest.skip("its calls have the numbers of x86_64")
    if name == "another's memory" and os.getuid() and YAMA.exists() and YAMA.read_text().strip() != "0":
        pytest.skip("this kernel lets an ordinary user read no other process")
    done = subprocess.run(
        [sys.executable, "-I", "-c", source], capture_output=True, text=True, timeout=30, cwd=tmp_path, check=False
    )
    assert ESCAPED in done.stdout
    connections.clear()


def test_a_short_soak_gives_every_honest_answer_right(pool):
    needs_isolation(pool)
    draw = random.Random(0)
    quick = [p for name, p in PROGRAMS.items() if name not in BLOCKING | MORE_BLOCKING and "sleep" not in p]
    for number in range(300):
        if number % 3 == 0:
            pool.run(draw.choice([*quick, *POISONING.values()]), mode="any")
        else:
            outcome = pool.run(f"import math\nx = math.sqrt({number}) * {number}\nprint(x)")
            assert outcome.value == pytest.approx(number**1.5), outcome


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_subset_holds_no_hostile_program_but_plain_arithmetic(name):
    source = PROGRAMS[name].replace("PORT", "1").replace("PARENT", "1")
    if name in ("long arithmetic", "one huge object", "huge answer", "number of many digits"):
        checked(source, functions=())  # the limits are for these
    else:
        with pytest.raises(ProgramRefused):
            checked(source, functions=())


def test_arithmetic_without_end_is_ended_and_the_pool_goes_on(pool):
    assert pool.run("x = 9 ** 9 ** 9", mode="constrained").kind == "time"
    assert pool.run("x = 'x' * 10 ** 12").kind == "memory"
    assert pool.run("sum([1, 2])").value == 3


def test_no_process_of_a_program_is_left(pool):
    needs_isolation(pool)
    for name in ("fork bomb", "child that outlives", "deaf to signals", "zombie children"):
        pool.run(PROGRAMS[name], mode="any")
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
    assert called_in("a = f(1)\nb = g(f(a)) + max(a, 2)\nprint(b)", ["f", "g"]) == ("f", "g", "f")
    assert called_in("no Python", ["f"]) == ()


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
    assert pool.run("secret", mode="constrained").kind == "refused"
    assert pool.run("secret").kind == "error"


def test_many_programs_keep_their_order():
    with Sandbox(workers=2, limits=LIMITS, allow_weaker=True) as two:
        jobs = [sandbox.Job(f"{i} * 2") for i in range(60)]
        assert [outcome.value for outcome in two.map(jobs)] == [2 * i for i in range(60)]


def test_a_worker_that_dies_is_replaced_however_often(pool):
    before = pool.replaced
    for _ in range(3):
        assert pool.run("1 + 1").value == 2
        os.killpg(pool._workers[0].process.pid, signal.SIGKILL)
        assert pool.run("1 + 1").kind == "killed"
    assert pool.run("1 + 1").value == 2
    assert pool.replaced == before + 3


def test_after_an_interruption_no_program_gets_the_answer_of_another(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with Sandbox(limits=Limits(seconds=30.0), allow_weaker=True) as pool:
        with monkeypatch.context() as patched:
            patched.setattr(sandbox.Worker, "_receive", interrupted)  # the program was sent and runs
            with pytest.raises(KeyboardInterrupt):
                pool.run("'old'")
        assert [pool.run(str(number)).value for number in (2, 3)] == [2, 3]
        assert pool.replaced == 1


def test_a_worker_that_cannot_start_for_a_while_does_not_end_the_pool(monkeypatch):
    with Sandbox(limits=LIMITS, allow_weaker=True) as pool:
        os.killpg(pool._workers[0].process.pid, signal.SIGKILL)
        assert pool.run("1").kind == "killed"
        with monkeypatch.context() as patched:
            patched.setattr(sandbox.sys, "executable", "/no/such/python")
            assert pool.run("1").kind == "killed"
        assert pool.run("1 + 1").value == 2


@pytest.mark.parametrize("way", [*WAYS, "none"])
def test_no_folder_is_left_when_the_parent_is_killed(way):
    folders = "Path('/tmp').glob(f'tenfold-sandbox-{os.getpid()}-*')"  # where a process without environment makes them
    source = (
        "import os, signal\nfrom pathlib import Path\nfrom lib.sciagent import Sandbox\n"
        f"pool = Sandbox(isolation='{way}', allow_weaker=True)\nassert pool.run('1 + 1').value == 2\n"
        f"print(os.getpid(), len(list({folders})), flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(sandbox.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    parent, there = done.stdout.split()
    assert int(there) == (way != "bubblewrap"), "Bubblewrap's folder is in memory"
    deadline = time.monotonic() + 20
    while (left := list(Path("/tmp").glob(f"tenfold-sandbox-{parent}-*"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def test_the_environment_does_not_enter(monkeypatch):
    monkeypatch.setenv("TENFOLD_SECRET", "x")
    with Sandbox(allow_weaker=True) as fresh:
        names = fresh.run("import os, sys\n[sorted(os.environ), sys.flags.isolated]", mode="any").value
    assert "TENFOLD_SECRET" not in names[0]
    assert names[1] == 1


def test_folders_of_ones_own_can_be_imported_from_and_not_written(tmp_path):
    (tmp_path / "mine.py").write_text("def double(x):\n    return 2 * x\n")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    with Sandbox(folders=[tmp_path], allow_weaker=True) as own:
        assert own.run("double(4)", tools={"double": "mine:double"}).value == 8
        assert not own.run(f"open('{tmp_path}/x', 'w')").ok
    assert not (tmp_path / "x").exists()


def test_limits_of_one_program(pool):
    assert pool.run("x = bytearray(200_000_000)").kind == "memory"
    # Writing 200 MB of zeros takes seconds on a machine that is busy, so the time limit is far off.
    roomy = Limits(memory_mib=600, seconds=60, cpu_seconds=60)
    assert pool.run("x = bytearray(200_000_000)", limits=roomy).ok
    assert pool.run("print('x' * 30_000)").kind == "output"
    error = pool.run("open('f', 'wb').write(b'0' * 4_000_000)")
    assert error.kind in ("error", "killed"), "RLIMIT_FSIZE sends SIGXFSZ or refuses"
    assert pool.run("import time\ntime.sleep(5)").error == "ran longer than 0.7 s"


def test_a_result_is_whole_or_refused_in_one_sentence(pool):
    roomy = Limits(memory_mib=600, seconds=60, cpu_seconds=60)
    whole = pool.run("[list(range(1000)), 'x' * 20_000, {'y' * 500: [[[[[1]]]]]}]", limits=roomy)
    assert whole.value == [list(range(1000)), "x" * 20_000, {"y" * 500: [[[[[1]]]]]}]
    assert pool.run("print(list(range(1000)))", limits=roomy).value == list(range(1000))
    for long in ("'x' * 3_000_000", "list(range(400_000))", "'x' * 50_000_000"):
        refused = pool.run(long, limits=roomy)
        assert (refused.kind, refused.error) == ("output", "answered with more than 2097152 bytes")


def test_the_measured_address_space_is_the_kernels():
    source = "import sys; sys.path.insert(0, sys.argv[1]); from inside.isolation import bytes_mapped; import mmap\n"
    source += "found = bytes_mapped(); print(found - int(open('/proc/self/statm').read().split()[0]) * mmap.PAGESIZE)"
    folder = str(Path(isolation.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", source, folder], capture_output=True, text=True, check=True)
    assert abs(int(done.stdout)) <= 1 << 20


def test_it_says_what_is_missing():
    with pytest.raises(TenfoldError, match="could not start .*no_such_library"):
        Sandbox(preload=["no_such_library"], allow_weaker=True)
    with pytest.raises(TenfoldError, match="does not isolate network, .*allow_weaker=True"):
        Sandbox(isolation="none")
    with pytest.raises(ValueError, match="at least one"):
        Sandbox(workers=0)
    closed = Sandbox(allow_weaker=True)
    closed.close()
    with pytest.raises(TenfoldError, match="closed"):
        closed.run("1")


def test_a_text_is_no_code_for_a_function_that_evaluates(pool):
    tools = {"factorial": "sympy:factorial"}
    hostile = "answer = str(factorial(\"exec('print(666)')\"))"
    assert "666" in pool.run(hostile, tools=tools, mode="constrained", limits=Limits(seconds=20, cpu_seconds=20)).stdout
    for text in (hostile, hostile.replace('"exec', '["exec').replace(')"', ')"]')):
        limits = Limits(seconds=20, cpu_seconds=20)
        outcome = pool.run(text, tools=tools, literal=["factorial"], mode="constrained", limits=limits)
        assert outcome.error.startswith("TypeError: factorial takes numbers, not texts"), outcome
    assert pool.run("factorial(5)", tools=tools, literal=["factorial"], limits=limits).value == 120


@pytest.mark.parametrize(("program", "value"), SCRIPTS, ids=[str(i) for i in range(len(SCRIPTS))])
def test_an_ordinary_numeric_script_runs(program, value, pool):
    outcome = pool.run(program, limits=Limits(seconds=20, cpu_seconds=10))
    assert outcome.ok, outcome.error
    assert outcome.value == (value if isinstance(value, (str, list, dict, bool)) else pytest.approx(value, rel=1e-6))


def test_an_import_that_is_not_listed_says_which_are():
    with Sandbox(allow_weaker=True, limits=LIMITS) as pool:
        assert "os may not be imported: use bisect" in pool.run("import os").error
        assert pool.run("import string.nothing").error.startswith("ModuleNotFoundError")


@pytest.mark.parametrize(("reply", "program"), [
    ("x = 1", "x = 1"), ("Sure:\n```python\nx = 1\n```\nDone.", "x = 1"), ("```\nx = 1\n```", "x = 1"),
    ("```py\nx = 1", "x = 1"), ("```python\na = 1\n```\nbetter:\n```python\nb = 2\n```", "b = 2"),
    ("```python\nx = 1\n```\n```text\n1\n```", "x = 1"), ("```json\n1\n```", "1"), ("", ""),
])  # fmt: skip
def test_a_program_is_taken_out_of_its_fences(reply, program):
    assert program_in(reply) == program


@pytest.mark.parametrize(("program", "left"), [
    ("# why\n@cached\ndef f(x):\n    return x\n\nanswer = f(2)  # so", "# why\n\nanswer = f(2)  # so"),
    ("f = lambda x: 1\nanswer = f(2)", "answer = f(2)"), ("class f: pass\nanswer = f(2)", "answer = f(2)"),
    ("x = 1; f = lambda x: 1; answer = f(2)", "x = 1\nanswer = f(2)"),
    ("def g(x): return f(x)\nf = 3", "def g(x): return f(x)\nf = 3"), ("def f(:", "def f(:"),
])  # fmt: skip
def test_a_shown_function_defined_anew_is_dropped_so_that_the_real_one_is_called(program, left):
    assert without_redefinitions(program, ["f"]) == left


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="namespaces are Linux's")
def test_layers_reported_are_layers_there(each_pool):
    if "network" in each_pool.layers:
        found = each_pool.run(
            "import os\nos.listdir('/sys/class/net') if os.path.isdir('/sys') else ['none']", mode="any"
        ).value
        assert found in (["none"], ["lo"])
    if "processes" in each_pool.layers:
        assert each_pool.run("import os\nos.getppid()", mode="any").value == 1
    if "user" in each_pool.layers:
        assert each_pool.run("import os\nos.getuid()", mode="any").value != 0


def test_its_fingerprint_holds_what_runs_in_the_workers(warm, pool):
    versions, limits = warm.fingerprint()
    assert set(versions) == set(warm.preload)
    assert all(versions.values())
    inside = {f"lib.sciagent.inside.{name}" for name in ("worker", "harvest", "isolation")}
    assert inside <= keys.reach("lib.sciagent.sandbox"), "an edit of what the workers run is another key"
    assert pool.fingerprint()[1] != limits
