"""`make doctor`: what this machine has, what is missing, and the command that gets it."""

import os
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

from lib import data_dir, root
from lib.lab import paths, provenance, report


def lock() -> dict[str, str]:
    """Exact versions of requirements.lock."""
    pins = (root() / "requirements.lock").read_text(encoding="utf8")
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", pins, re.MULTILINE))


def version_drift() -> list[str]:
    """Pinned packages that are missing here or installed in another version."""
    drift = []
    for name, wanted in lock().items():
        try:
            have = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            have = "missing"
        if have != wanted:
            drift.append(f"{name} {have} (pinned {wanted})")
    return drift


def folder_size_gib(folder: Path) -> float:
    """Size of a folder's files in GiB."""
    sizes = (os.lstat(os.path.join(base, name)).st_size for base, _, files in os.walk(folder) for name in files)
    return sum(sizes) / 2**30


def examine(missing_assets: list[str]) -> list[tuple[str, str, str]]:
    """Rows (what, state, what to do); an empty last field means that nothing has to be done."""
    import torch

    drift = version_drift()
    place = provenance.machine()
    free = shutil.disk_usage(data_dir() if data_dir().exists() else root()).free / 2**30
    python_fits = sys.version_info[:2] == (3, 11)
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return [
        ("python", sys.version.split()[0], "" if python_fits else "make env PYTHON=python3.11"),
        ("packages", ", ".join(drift[:4]) + (f" and {len(drift) - 4} more" if len(drift) > 4 else "") or "as pinned",
         "make env" if drift else ""),
        ("machine", f"{place['processor']}, {place['cores']} cores, {place['memory_gib']} GiB", ""),
        ("accelerator", accelerator, ""),
        ("disk", f"{free:.0f} GiB free", "" if free > 5 else "free some space: a cold run needs about 5 GiB"),
        ("cache", f"{folder_size_gib(paths.cache_dir()):.2f} GiB in data/cache", ""),
        ("assets", f"missing: {', '.join(missing_assets)}" if missing_assets else "all here",
         "make assets" if missing_assets else ""),
    ]  # fmt: skip


def print_examination(rows: list[tuple[str, str, str]]) -> None:
    """Print the rows as a table."""
    from rich.table import Table

    table = Table(show_header=True)
    for column in ("what", "state", "to do"):
        table.add_column(column, overflow="fold")
    for what, state, remedy in rows:
        table.add_row(what, state, f"[bold]{remedy}[/]" if remedy else "[green]✔[/]")
    report.console().print(table)
