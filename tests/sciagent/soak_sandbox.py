"""Soak of the sandbox: `python tests/sciagent/soak_sandbox.py 20000` runs so many programs, a third of them hostile.

Every honest program must give its right answer, no hostile one what it wants; it ends with the counts.
"""

import collections
import os
import random
import sys
import time
from pathlib import Path

from lib.sciagent import Limits, Sandbox
from lib.sciagent.study.hostile import CLASSES, ESCAPED, POISONING, PROGRAMS, aimed

HONEST, HOSTILE = Limits(seconds=30.0, cpu_seconds=10.0), Limits(seconds=0.4, cpu_seconds=0.4, memory_mib=128)
TOOLS = {"Reynolds": "fluids.core:Reynolds", "LMTD": "ht.core:LMTD"}


def honest(number: int, draw: random.Random) -> tuple[str, float]:
    """A program of one of four kinds and its answer."""
    x = draw.uniform(1, 100)
    return (
        (f"import math\nprint(math.sqrt({x!r}) * {number})", x**0.5 * number),
        (f"answer = Reynolds(V={x!r}, D=2.0, nu=0.5)", x * 2.0 / 0.5),
        (f"total = 0\nfor i in range({number % 50}):\n    total += i * {x!r}\ntotal", sum(range(number % 50)) * x),
        (f"import numpy as np\nanswer = float(np.linalg.norm([{x!r}, {number}]))", (x * x + number * number) ** 0.5),
    )[number % 4]


def main(programs: int) -> int:
    """Run the soak; returns the number of failures."""
    draw, began = random.Random(0), time.monotonic()
    kind_of = {name: kind for kind, some in CLASSES.items() for name in some}
    hostile = [(kind_of[name], source) for name, source in PROGRAMS.items()]
    hostile += [("change libraries", source) for source in POISONING.values()]
    outcomes, failures = collections.Counter(), 0
    canary = Path("/tmp/tenfold-soak-canary")
    canary.write_text("untouched")
    with Sandbox(preload=["numpy", "fluids.core", "ht.core"], limits=HONEST) as pool:
        for number in range(programs):
            if number % 3 == 0:
                kind, source = draw.choice(hostile)
                source = aimed(source, canary=str(canary), parent=os.getpid())
                outcome = pool.run(source, mode="any", limits=HOSTILE)
                escaped = ESCAPED in outcome.stdout or canary.read_text() != "untouched"
                outcomes[kind, "ESCAPED" if escaped else outcome.kind] += 1
                failures += escaped
            else:
                source, wanted = honest(number, draw)
                outcome = pool.run(source, tools=TOOLS)
                right = isinstance(outcome.value, (int, float)) and abs(outcome.value - wanted) <= 1e-9 * abs(wanted)
                outcomes["honest", "right" if right else f"wrong: {outcome}"] += 1
                failures += not right
            if number % 2000 == 1999:
                print(
                    number + 1,
                    f"{time.monotonic() - began:.0f} s, replaced {pool.replaced}, failures {failures}",
                    flush=True,
                )
    for (kind, what), count in sorted(outcomes.items()):
        print(f"{kind:20} {what:10} {count}")
    canary.unlink()
    return failures


if __name__ == "__main__":
    sys.exit(bool(main(int(sys.argv[1]))))
