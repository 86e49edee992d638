import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
import torch

from lib import TenfoldError
from lib.lab import cache

PARTS = {"paper": "p", "stage": "s", "version": 1, "seed": 0}


def names(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize(
    "result",
    [
        pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
        {"w": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])},
        {"w": np.arange(3.0)},
        {"loss": [1.5, 2.0], "name": "x"},
        [1, 2, 3],
    ],
    ids=["frame", "tensors", "arrays", "dict", "list"],
)
def test_cold_and_warm_give_the_same(tmp_path, result):
    calls = []
    cold = cache.stage(tmp_path, "s", PARTS, lambda: calls.append(1) or result)
    warm = cache.stage(tmp_path, "s", PARTS, lambda: calls.append(1) or result)
    assert calls == [1]
    assert (cold.loaded, warm.loaded) == (False, True)
    assert str(cold.value) == str(warm.value)
    assert len(names(tmp_path)) == 1


def test_the_key_depends_on_values_not_on_order():
    assert cache.key_of({"a": 1, "b": [1.0]}) == cache.key_of({"b": [1.0], "a": 1})
    assert cache.key_of({"a": 1}) != cache.key_of({"a": 2})
    assert cache.key_of({"a": np.int64(1)}) == cache.key_of({"a": 1})


@pytest.mark.parametrize("value", [object(), {1, 2}, float("nan")])
def test_a_key_without_stable_text_is_refused(value):
    with pytest.raises(TenfoldError, match="can depend on numbers"):
        cache.key_of({"a": value})


def test_a_result_that_cannot_be_kept_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(TenfoldError, match="a stage keeps"):
        cache.stage(tmp_path, "s", PARTS, lambda: object())
    assert names(tmp_path) == []


def test_a_damaged_entry_is_computed_again_with_a_warning(tmp_path):
    cache.stage(tmp_path, "s", PARTS, lambda: [1])
    (payload,) = tmp_path.glob("*/value.json")
    payload.write_text("[2]")
    with pytest.warns(UserWarning, match="damaged"):
        again = cache.stage(tmp_path, "s", PARTS, lambda: [3])
    assert again.value == [3]


def test_a_failing_stage_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        cache.stage(tmp_path, "s", PARTS, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cache.folder_stage(tmp_path, "f", PARTS, lambda path: (path / "half").write_text("x") and 1 / 0)
    assert names(tmp_path) == []


def test_a_folder_stage_is_built_once(tmp_path):
    first = cache.folder_stage(tmp_path, "f", PARTS, lambda path: (path / "weights").write_text("1"))
    again = cache.folder_stage(tmp_path, "f", PARTS, lambda path: (path / "weights").write_text("2"))
    assert (first.value / "weights").read_text() == "1"
    assert again.loaded
    (first.value / "weights").write_text("damaged")
    mended = cache.folder_stage(tmp_path, "f", PARTS, lambda path: (path / "weights").write_text("3"))
    assert (mended.value / "weights").read_text() == "3"


SCRIPT = """
    import sys, time
    from pathlib import Path
    from lib.lab import cache

    def build(path):
        (path / "half").write_text("half")
        print("half", flush=True)
        time.sleep({sleep})
        (path / "whole").write_text("whole")

    print(cache.folder_stage(Path({folder!r}), "f", {parts!r}, build).loaded)
"""


def script(tmp_path, sleep):
    source = textwrap.dedent(SCRIPT).format(sleep=sleep, folder=str(tmp_path), parts=PARTS)
    return subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)


def test_kill_9_in_the_middle_of_a_stage_then_a_clean_rerun(tmp_path):
    process = script(tmp_path, sleep=60)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "half"
    process.send_signal(signal.SIGKILL)
    process.wait()
    (left,) = names(tmp_path)
    assert left.startswith("."), "a killed stage never has an entry's name"

    output, _ = script(tmp_path, sleep=0).communicate(timeout=60)
    assert output.split() == ["half", "False"]
    (entry,) = names(tmp_path)
    assert sorted(names(tmp_path / entry)) == ["half", "meta.json", "whole"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(TenfoldError, match="full at .*make clean-cache"):
            cache.stage(tmp_path / "c", "s", PARTS, lambda: ["x" * 100_000])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path / "c") == []


def test_other_errors_of_the_disk_are_not_renamed(tmp_path):
    with pytest.raises(PermissionError), cache.full_disk_refused(tmp_path):
        raise PermissionError(errno.EACCES, "no")


def test_process_lives():
    assert cache.process_lives(os.getpid())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert not cache.process_lives(gone.pid)
