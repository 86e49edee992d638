"""No test may reach for the hub, open a window, or write into the repository's own folders."""

import os
import sys
from collections import Counter

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


def pytest_collection_modifyitems(items):
    """Whole notebooks first: what is short then fills the two workers' last minute evenly."""
    items.sort(key=lambda item: item.get_closest_marker("notebook") is None)


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
