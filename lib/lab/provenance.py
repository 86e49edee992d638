"""Where a result comes from: commit, versions, machine. No paths, no host names."""

import os
import platform
import subprocess
from importlib import metadata
from typing import Any

from lib import __version__, root

PACKAGES = ("torch", "transformers", "datasets", "trl", "peft", "diffusers", "accelerate", "numpy", "papermill")
MADE_BY_RUNS = (":!figures", ":!README.md", ":!tests/golden")  # a run's own outputs do not make its source dirty


def git_state(*made: str) -> dict[str, Any]:
    """Commit and whether the sources differ from it, but for folders that are `made`; both None outside a checkout."""
    try:
        commit, apart = _git("rev-parse", "HEAD"), (*MADE_BY_RUNS, *(f":!{folder}" for folder in made))
        return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--", ".", *apart))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def commits() -> int:
    """Number of commits up to this one; 0 outside a checkout."""
    try:
        return int(_git("rev-list", "--count", "HEAD"))
    except (OSError, subprocess.CalledProcessError):
        return 0


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(root()), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def versions() -> dict[str, str]:
    """Versions of Python, Tenfold and the packages that results depend on."""
    found = {"python": platform.python_version(), "tenfold": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Processor, cores and memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"processor": _processor(), "cores": os.cpu_count(), "memory_gib": round(memory, 1)}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def in_one_line(record: dict[str, Any]) -> str:
    """Provenance as the first thing a reader sees under a notebook's setup cell."""
    commit = (record["commit"] or "no git")[:10] + (" + changes" if record["dirty"] else "")
    kept = ("python", "torch", "transformers")
    packages = " · ".join(f"{name} {record['versions'][name]}" for name in kept)
    place = record["machine"]
    return (
        f"profile {record['profile']} · seed {record['seed']} · {record['device']} {record['dtype']} · {commit}\n"
        f"{packages} · {place['processor']}, {place['cores']} cores, {place['memory_gib']} GiB"
    )
