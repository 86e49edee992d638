# ruff: noqa: E501 - programs as one string each
"""Fifty hostile programs: each tries to leave the sandbox, to block it, or to spoil what comes after.

`CANARY`, `PORT` and `PARENT` are filled in by the test. A program that got what it wanted says ESCAPED.
"""

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
PROGRAMS = READING | WRITING | NETWORK | PROCESSES | BLOCKING | SPOILING

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
