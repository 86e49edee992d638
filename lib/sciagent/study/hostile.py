# ruff: noqa: E501 - programs as one string each
"""Hostile programs by class: each tries to leave the sandbox, to block it, or to spoil what comes after.

`CANARY`, `PORT` and `PARENT` are filled in by `aimed`. A program that got what it wanted says ESCAPED. Run them inside a
sandbox with all its layers only: outside, some do what they say.
"""

import pandas as pd

from lib.sciagent.sandbox import Limits, Sandbox

ESCAPED = "ESCAPED"

READING = {
    "read a file outside": "print('ESCAPED' if open('CANARY').read() else '')",
    "read passwords": "print('ESCAPED' if open('/etc/passwd').read() else '')",
    "read through proc": "print('ESCAPED' if open('/proc/1/root/etc/passwd').read() else '')",
    "read the parent's memory": "print('ESCAPED' if open('/proc/PARENT/mem', 'rb').read(1) else '')",
    "walk up from here": "import os\nprint('ESCAPED' if os.path.exists('../' * 20 + 'CANARY') else '')",
    "read the environment": "import os\nprint('ESCAPED' if any('TENFOLD' in k or k == 'HOME' for k in os.environ) else '')",
    "list home folders": "import os\nprint('ESCAPED' if os.path.isdir('/home') or os.path.isdir('/etc') else '')",
    "symbolic link outside": "import os\nos.symlink('CANARY', 'link')\nprint('ESCAPED' if open('link').read() else '')",
    "inherited descriptors": (
        "import os\nfor d in range(3, 256):\n"
        "    try:\n        found = os.readlink(f'/proc/self/fd/{d}')\n        print('ESCAPED', found)\n"
        "    except OSError:\n        pass"
    ),
    "raw disk": "import os\nos.mknod('disk', 0o60666, os.makedev(8, 0))\nprint('ESCAPED')",
}
WRITING = {
    "write a file outside": "open('CANARY', 'w').write('spoiled')\nprint('ESCAPED')",
    "delete a file outside": "import os\nos.remove('CANARY')\nprint('ESCAPED')",
    "write into a library": "import json\nopen(json.__file__, 'a').write('spoiled')\nprint('ESCAPED')",
    "new file at the root": "open('/spoiled', 'w').write('x')\nprint('ESCAPED')",
    "fill the disk": "f = open('big', 'wb')\nfor _ in range(10_000):\n    f.write(b'0' * 1_000_000)\nprint('ESCAPED')",
    "fill the disk with many files": "for i in range(100_000):\n    open(f'f{i}', 'w').write('x' * 500_000)\nprint('ESCAPED')",
    "locked folder left behind": "import os\nos.makedirs('a/b/c')\nos.chmod('a/b', 0)\nos.chmod('a', 0)",
    "change the root": "import os\nos.chroot('/scratch')\nprint('ESCAPED')",
    "mount something": (
        "import ctypes\nif ctypes.CDLL(None).mount(b'none', b'/scratch', b'tmpfs', 0, None) == 0:\n    print('ESCAPED')"
    ),
    "become root": "import os\nos.setuid(0)\nprint('ESCAPED')",
}
NETWORK = {
    "connect to this machine": "import socket\nsocket.create_connection(('127.0.0.1', PORT), 1)\nprint('ESCAPED')",
    "open a socket": "import socket\nsocket.socket()\nprint('ESCAPED')",
    "open a datagram socket": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nprint('ESCAPED')",
    "listen": "import socket\nsocket.create_server(('127.0.0.1', 0))\nprint('ESCAPED')",
    "socket by system call": ("import ctypes\nif ctypes.CDLL(None).socket(2, 1, 0) >= 0:\n    print('ESCAPED')"),
    "fetch a page": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:PORT', timeout=1)\nprint('ESCAPED')",
}
PROCESSES = {
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "one fork": "import os\nos.fork()\nprint('ESCAPED')",
    "run a command": "import subprocess\nprint('ESCAPED' if subprocess.run(['true']).returncode == 0 else '')",
    "shell": "import os\nprint('ESCAPED' if os.system('true') == 0 else '')",
    "replace the process": "import os, sys\nos.execv(sys.executable, ['python', '-c', 'print(1)'])\nprint('ESCAPED')",
    "zombie children": "import os\nfor _ in range(50):\n    if os.fork() == 0:\n        os._exit(0)\nprint('ESCAPED')",
    "child that outlives": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\nprint('ESCAPED')",
    "threads": "import threading, time\nt = threading.Thread(target=time.sleep, args=(60,))\nt.start()\nprint('ESCAPED')",
    "process pool": "import multiprocessing\nmultiprocessing.Pool(2).map(abs, [1])\nprint('ESCAPED')",
    "kill the parent": "import os\nos.kill(PARENT, 9)\nprint('ESCAPED')",
    "kill the worker": "import os\nos.kill(os.getppid(), 9)\nprint('ESCAPED')",
    "kill everything": "import os\nos.kill(-1, 9)\nprint('ESCAPED')",
    "trace the worker": "import ctypes, os\nif ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0:\n    print('ESCAPED')",
}
BLOCKING = {
    "busy for ever": "while True:\n    pass",
    "long arithmetic": "x = 9 ** 9 ** 9",
    "sleep": "import time\ntime.sleep(60)",
    "deaf to signals": "import signal\nfor s in range(1, 32):\n    try:\n        signal.signal(s, signal.SIG_IGN)\n    except OSError:\n        pass\nwhile True:\n    pass",
    "eat memory": "x = []\nwhile True:\n    x.append(bytearray(10_000_000))",
    "one huge object": "x = 'x' * 10 ** 12",
    "print for ever": "while True:\n    print('spam' * 1000)",
    "print below Python": "import os\nwhile True:\n    os.write(1, b'spam' * 1000)",
    "huge answer": "answer = ['x' * 9999] * 256 * 100\nanswer = {str(i): answer for i in range(100)}",
    "read standard input": "import sys\nprint('ESCAPED' if sys.__stdin__.read() else '')",
    "raise its own limits": ("import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nprint('ESCAPED')"),
}
SPOILING = {
    "exit below Python": "import os\nos._exit(0)",
    "exit": "import sys\nsys.exit(3)",
    "crash": "import ctypes\nctypes.string_at(0)",
    "abort": "import os\nos.abort()",
    "deep recursion": "def f(n):\n    return f(n + 1)\nf(0)",
    "forged answer": (
        "import os, struct\nfor d in range(3, 64):\n    try:\n        os.write(d, struct.pack('!I', 7) + b'forged!' * 9)\n"
        "    except OSError:\n        pass"
    ),
    "promise of a long answer": (
        "import os\nfor d in range(3, 64):\n    try:\n        os.write(d, b'\\xff\\xff\\xff\\xff')\n    except OSError:\n        pass"
    ),
    "change a library for the next": "import math\nmath.sqrt = lambda x: 666.0\nimport builtins\nbuiltins.abs = lambda x: 666",
    "close its pipes": "import os\nos.closerange(0, 256)",
    "answer that is no JSON": "answer = float('nan')\nclass A(dict):\n    def items(self):\n        raise ValueError\nanswer = A()",
}


def _call(number, *arguments, fine="found >= 0"):
    """A program that makes a system call of x86_64 by its number and says whether it was let through."""
    listed = ", ".join(map(str, (number, *arguments)))
    return (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nlibc.syscall.restype = ctypes.c_long\n"
        f"room = ctypes.create_string_buffer(4096)\nfound = libc.syscall({listed})\nprint('ESCAPED' if {fine} else '')"
    )


LET_IN = "found >= 0 or ctypes.get_errno() not in (1, 38)"  # not refused as such: EPERM or ENOSYS
CALLS = {  # what an allowlist must refuse, also where it would do no harm
    "unshare": _call(272, 0x10000000),
    "namespace of another": _call(308, -1, 0, fine=LET_IN),
    "pivot the root": _call(155, "b'/'", "b'/'", fine=LET_IN),
    "file in memory": _call(319, "b'x'", 0),
    "execute from memory": _call(322, -1, "b''", 0, 0, 0x1000, fine=LET_IN),
    "user faults": _call(323, 0x80001),
    "performance events": _call(298, "room", 0, -1, -1, 0, fine=LET_IN),
    "kernel programs": _call(321, 0, "room", 0, fine=LET_IN),
    "asynchronous ring": _call(425, 8, "room"),
    "keys": _call(248, "b'user'", "b'k'", "b'v'", 1, -3, fine=LET_IN),
    "another's memory": _call(310, "os.getppid()", "room", 1, "room", 1, 0, fine=LET_IN),
    "compare processes": _call(312, "os.getpid()", "os.getppid()", 0, 0, 0),
    "handle of a process": _call(434, "os.getppid()", 0),
    "descriptor of another": _call(438, 3, 0, 0, fine=LET_IN),
    "open beneath": _call(437, -100, "b'.'", "room", 24),
    "open by handle": _call(304, -100, "room", 0, fine=LET_IN),
    "watch files": _call(294, 0),
    "watch the machine": _call(300, 0, 0, fine=LET_IN),
    "pair of sockets": _call(53, 1, 1, 0, "room"),
    "clone": _call(56, 17, 0, 0, 0, 0),
    "clone with a struct": _call(435, "room", 88, fine=LET_IN),
    "vfork": "import os\nos.posix_spawn('/usr/bin/true', ['true'], {})\nprint('ESCAPED')",
    "shared memory": _call(29, 0, 4096, 0o1600),
    "message queue": _call(68, 0, 0o1600),
    "semaphores": _call(64, 0, 1, 0o1600),
    "new session": _call(112),
    "process group": _call(109, 0, 0),
    "hostname": _call(170, "b'x'", 1, fine=LET_IN),
    "kernel log": _call(103, 10, 0, 0),
    "personality": _call(135, 0xFFFFFFFF),
    "own name": _call(157, 15, "b'x'"),
    "dumpable again": _call(157, 4, 1, 0, 0, 0),
    "signal with a value": _call(129, "os.getppid()", 0, "room", fine=LET_IN),
    "signal to a thread": _call(234, "os.getppid()", "os.getppid()", 0, fine=LET_IN),
    "capabilities": _call(126, "room", "room", fine=LET_IN),
    "owner of a file": _call(92, "b'.'", 0, 0),
    "secret memory": _call(447, 0, fine=LET_IN),
    "landlock": _call(444, 0, 0, 1, fine=LET_IN),
}
OTHERS = {  # the review's: limits, processors and priorities of other processes
    "limits of the first process": "import resource\nresource.prlimit(1, resource.RLIMIT_NPROC, (0, 0))\nprint('ESCAPED')",
    "limits of the worker": "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_AS, (1 << 20, 1 << 20))\nprint('ESCAPED')",
    "read the worker's limits": "import os, resource\nprint('ESCAPED' if resource.prlimit(os.getppid(), resource.RLIMIT_AS) else '')",
    "processors of the worker": "import os\nos.sched_setaffinity(os.getppid(), {0})\nprint('ESCAPED')",
    "own processors": "import os\nos.sched_setaffinity(0, os.sched_getaffinity(0))\nprint('ESCAPED')",
    "see the worker's processors": "import os\nprint('ESCAPED' if os.sched_getaffinity(os.getppid()) else '')",
    "scheduling": "import os\nos.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))\nprint('ESCAPED')",
    "priority of the worker": "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)\nprint('ESCAPED')",
    "priority of all": "import os\nos.setpriority(os.PRIO_USER, 0, 19)\nprint('ESCAPED')",
    "be nice": "import os\nos.nice(1)\nprint('ESCAPED')",
    "disk priority": _call(251, 1, 0, 0x4007),
    "own a descriptor": "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())\nprint('ESCAPED')",
    "signal of a descriptor": "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETSIG, 9)\nprint('ESCAPED')",
    "lease": "import fcntl\nf = open('x', 'w')\nfcntl.fcntl(f, fcntl.F_NOTIFY if False else 1024, fcntl.F_UNLCK)\nprint('ESCAPED')",
    "size of a pipe": "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, 1031, 1 << 18)\nprint('ESCAPED')",
    "flags of a file": "import fcntl\nf = open('x', 'w')\ntry:\n    fcntl.ioctl(f, 0x80086601, bytes(8))\n    print('ESCAPED')\nexcept OSError as e:\n    print('ESCAPED' if e.errno not in (1, 13) else '')",
}
FILES = {
    "hard link outside": "import os\nos.link('CANARY', 'link')\nprint('ESCAPED')",
    "move a file outside": "import os\nos.rename('CANARY', 'CANARY.moved')\nos.rename('CANARY.moved', 'CANARY')\nprint('ESCAPED')",
    "truncate outside": "import os\nos.truncate('CANARY', os.stat('CANARY').st_size)\nprint('ESCAPED')",
    "mode of a file outside": "import os\nos.chmod('CANARY', 0o666)\nprint('ESCAPED')",
    "times of a file outside": "import os\nos.utime('CANARY')\nprint('ESCAPED')",
    "see a file outside": "import os\nprint('ESCAPED' if os.stat('CANARY') else '')",
    "path without reading": "import os\nprint('ESCAPED' if os.open('CANARY', os.O_PATH) else '')",
    "the worker's root": "import os\nprint('ESCAPED' if os.listdir(f'/proc/{os.getppid()}') else '')",
    "memory of the machine": "import os\nprint('ESCAPED' if os.path.exists('/dev/mem') or os.path.exists('/dev/null') else '')",
    "shared folder in memory": "open('/dev/shm/tenfold-spoiled', 'w').write('x')\nimport os\nos.remove('/dev/shm/tenfold-spoiled')\nprint('ESCAPED')",
    "another temporary folder": "import os\nos.mkdir('/tmp/tenfold-spoiled')\nos.rmdir('/tmp/tenfold-spoiled')\nprint('ESCAPED')",
    "write into its own code": "import sys\nm = sys.modules.get('inside.worker') or sys.modules['ast']\nopen(m.__file__, 'a').close()\nprint('ESCAPED')",
    "hidden files left behind": "import os\nfor i in range(200):\n    open(f'.{i}', 'w').close()\nos.mkdir('.d')\nos.symlink('/', '.d/root')\nos.mkfifo('fifo') if False else None",
    "folders without end": "import os\nfor i in range(300):\n    os.mkdir('d' * 50)\n    os.chdir('d' * 50)",
    "names that are no text": "import os\nopen(b'\\xff\\xfe', 'w').close()\nos.mkdir(b'\\xff')\nopen(b'\\xff/\\n', 'w').close()",
}
MORE_BLOCKING = {
    "backtracking": "import re\nre.match('(a+)+$', 'a' * 60 + 'b')",
    "lock for ever": "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()",
    "catches every error": "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass",
    "ask for input": "input()",
    "representation without end": "class A:\n    def __repr__(self):\n        while True:\n            pass\nanswer = A()",
    "destructor without end": "class A:\n    def __del__(self):\n        while True:\n            pass\na = A()\ndel a",
    "alarm after alarm": "import signal\nsignal.signal(signal.SIGXCPU, lambda *a: None)\nwhile True:\n    pass",
    "array without end": "import array\nx = array.array('d', [0.0]) * 10 ** 10",
    "deep literal": "answer = eval('[' * 90 + ']' * 90)\nx = '(' * 100000 + ')' * 100000\neval(x)",
}
ANSWERS = {
    "half an answer": "import os, struct, time\nfor d in range(3, 64):\n    try:\n        os.write(d, struct.pack('!I', 100) + b'half')\n    except OSError:\n        pass\ntime.sleep(60)",
    "nested answer": "import os, struct\nt = b'[' * 500000\nfor d in range(3, 64):\n    try:\n        os.write(d, struct.pack('!I', len(t)) + t)\n    except OSError:\n        pass\nos._exit(0)",
    "answer that is no text": "import os, struct\nt = b'\\xff\\xfe{}'\nfor d in range(3, 64):\n    try:\n        os.write(d, struct.pack('!I', len(t)) + t)\n    except OSError:\n        pass\nos._exit(0)",
    "answer of another kind": 'import os, struct\nt = b\'{"kind": [1], "value": NaN, "stdout": 7}\'\nfor d in range(3, 64):\n    try:\n        os.write(d, struct.pack(\'!I\', len(t)) + t)\n    except OSError:\n        pass\nos._exit(0)',
    "number of many digits": "answer = 10 ** 5000",
    "not a number": "answer = [float('nan'), float('inf'), complex(1, float('nan'))]",
}
PROBE = (  # says ESCAPED where an earlier program changed something
    "import builtins, decimal, json, locale, math, os, random, sys\nimport collections.abc, numbers, string\n"
    "good = (math.sqrt(16.0) == 4.0 and abs(-1) == 1 and len([1]) == 1 and json.dumps([1]) == '[1]'\n"
    "        and decimal.getcontext().prec == 28 and sys.getrecursionlimit() == 1000 and 'SPOILED' not in os.environ\n"
    "        and string.digits == '0123456789' and sys.gettrace() is None and 'spoiled' not in sys.modules\n"
    "        and not hasattr(builtins, 'spoiled') and not any('spoiled' in p for p in sys.path)\n"
    "        and os.getcwd().count('spoiled') == 0 and int.__add__(1, 1) == 2)\nprint('' if good else 'ESCAPED')"
)
POISONING = {
    "a function": "import math\nmath.sqrt = lambda x: 666.0",
    "a builtin": "import builtins\nbuiltins.abs = lambda x: 666",
    "a constant": "import string\nstring.digits = '666'",
    "how answers are written": "import json\njson.dumps = lambda *a, **k: '{}'",
    "precision": "import decimal\ndecimal.getcontext().prec = 3",
    "recursion": "import sys\nsys.setrecursionlimit(500)",
    "environment": "import os\nos.environ['SPOILED'] = '1'",
    "tracing": "import sys\nsys.settrace(lambda *a: None)",
    "a module": "import sys, types\nsys.modules['spoiled'] = types.ModuleType('spoiled')",
    "a name for all": "import builtins\nbuiltins.spoiled = 1",
    "the path": "import sys\nsys.path.insert(0, 'spoiled')",
    "the worker's code": "import sys, string\nw = sys.modules.get('inside.worker')\nif w:\n    w.plain = w.send = w.take_limits = lambda *a, **k: 666\nstring.digits = ''",
    "the server": "import gc, string\nfor o in gc.get_objects():\n    if type(o).__name__ == 'Server':\n        o.held = (0, 0)\n        o.mapped = 1\nstring.digits = ''",
    "frames above": "import sys, string\nf = sys._getframe()\nwhile f:\n    for k, v in list(f.f_locals.items()):\n        if isinstance(v, dict):\n            v.clear() if k in ('limits', 'request', 'reply') else None\n    f = f.f_back\nstring.digits = ''",
}
PROGRAMS = (
    READING | WRITING | NETWORK | PROCESSES | BLOCKING | SPOILING | CALLS | OTHERS | FILES | MORE_BLOCKING | ANSWERS
)
CLASSES = {
    "read files": READING,
    "write files": WRITING | FILES,
    "network": NETWORK,
    "other processes": PROCESSES | OTHERS,
    "system calls": CALLS,
    "block": BLOCKING | MORE_BLOCKING,
    "spoil its answer": SPOILING | ANSWERS,
}


def aimed(source: str, *, canary: str = "/etc/hostname", port: int = 9, parent: int = 1) -> str:
    """Return a program with its targets filled in: a file outside, a port of this machine, the parent's process."""
    return source.replace("CANARY", canary).replace("PORT", str(port)).replace("PARENT", str(parent))


def outcomes(sandbox: Sandbox, limits: Limits, *, most: int) -> pd.DataFrame:
    """Run so many programs of each class, each followed by an honest one: class, outcome, whether that was right.

    An outcome is the sandbox's kind of end, or ESCAPED.
    """
    rows = []
    for kind, some in CLASSES.items():
        for source in list(some.values())[:most]:
            ended = sandbox.run(aimed(source), mode="any", limits=limits)
            outcome = ESCAPED if ESCAPED in ended.stdout else ended.kind
            honest = sandbox.run("import math\nprint(math.sqrt(16))").value == 4
            rows.append({"class": kind, "outcome": outcome, "honest after": honest})
    return pd.DataFrame(rows, columns=["class", "outcome", "honest after"])


# Outside a sandbox these say ESCAPED too, and do no harm there: what refuses them is the sandbox.
CONTROLS = [
    "read a file outside", "read passwords", "walk up from here", "read the environment", "list home folders",
    "symbolic link outside", "one fork", "run a command", "shell", "threads", "open a socket", "connect to this machine",
    "listen", "open a datagram socket", "socket by system call", "file in memory", "execute from memory",
    "another's memory", "handle of a process", "descriptor of another", "open beneath", "watch files", "pair of sockets",
    "clone", "clone with a struct", "vfork", "shared memory", "message queue", "semaphores", "new session", "own name",
    "process group", "dumpable again", "own processors", "see the worker's processors", "scheduling", "be nice",
    "disk priority", "signal of a descriptor", "size of a pipe", "flags of a file", "hard link outside",
    "move a file outside", "truncate outside", "times of a file outside", "see a file outside", "path without reading",
    "the worker's root", "memory of the machine", "another temporary folder",
]  # fmt: skip

ESCAPING_THE_SYNTAX = {
    "import": "import os",
    "import by name": "__import__('os').system('true')",
    "attribute": "x = (1).__class__",
    "attribute of a function": "f = tool.__globals__",
    "attribute in an f-string": "x = f'{tool.__globals__}'",
    "format by method": "'{0.__class__}'.format(1)",
    "evaluate": "eval('1')",
    "evaluate a builtin under another name": "e = eval",
    "getattr": "getattr(1, '__class__')",
    "open": "open('/etc/passwd')",
    "function": "def f():\n    pass",
    "lambda": "f = lambda: 0",
    "class": "class A:\n    pass",
    "loop": "while True:\n    pass",
    "with": "with tool() as t:\n    pass",
    "exception group": "try:\n    tool()\nexcept Exception as e:\n    pass",
    "walrus": "(x := 1)",
    "star import": "from os import *",
    "decorator": "@tool\ndef f():\n    pass",
    "underscore names": "__builtins__",
    "tool overwritten": "tool = 1",
    "call of a result": "tool()()",
    "call of a subscript": "[tool][0]()",
    "call of a variable": "f = tool\nf()",
    "function not shown": "other(1)",
    "delete": "del tool",
    "global": "global x",
    "await": "await tool()",
    "bytes": "x = b'x'",
    "match": "match 1:\n    case 1:\n        pass",
    "null character": "x = '\0",
    "not Python": "the answer is 4",
    "very long": "x = 1\n" * 10_000,
    "deeply nested": "x = " + "(" * 500 + "1" + ")" * 500,
}
