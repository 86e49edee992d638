"""`make doctor`: what this machine has, what is missing, and the command that gets it."""

import os
import re
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import lib
from lib import TenfoldError, cache_dir, data_dir, pins_file, refuse_unwritable, root
from lib.lab import paths, provenance, report
from lib.zoo.assets import on_demand

Row = tuple[str, str, str]  # what, its state, and what to do: empty where nothing has to be done


def lock() -> dict[str, str]:
    """Exact versions of requirements.lock, which a checkout has."""
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


def examine(missing_assets: Callable[[], list[str]]) -> list[Row]:
    """Rows of what this machine has; `missing_assets` names the assets that are not here (`lib.zoo.missing`)."""
    import torch

    place = provenance.machine()
    python_fits = sys.version_info[:2] == (3, 11) or not lib.is_checkout()  # the lock is for it, a wheel is not
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    rows = [
        ("python", sys.version.split()[0], "" if python_fits else "make env PYTHON=python3.11"),
        _packages(),
        ("machine", f"{place['processor']}, {place['cores']} cores, {place['memory_gib']} GiB", ""),
        ("accelerator", accelerator, ""),
        _folder("data", data_dir(), "TENFOLD_DATA"),
        _folder("cache", cache_dir(), "TENFOLD_CACHE" if os.environ.get("TENFOLD_CACHE") else "TENFOLD_DATA"),
        _assets(missing_assets),
        _large_models(),
    ]
    return [*rows, _folder("results", paths.figures_dir(), "TENFOLD_FIGURES")] if lib.is_checkout() else rows


def _packages() -> Row:
    if not lib.is_checkout():
        return "packages", "not compared: the pinned versions are those of a checkout", ""
    drift = version_drift()
    more = f" and {len(drift) - 4} more" if len(drift) > 4 else ""
    return "packages", ", ".join(drift[:4]) + more or "as pinned", "make env" if drift else ""


def _folder(what: str, folder: Path, variable: str) -> Row:
    """A folder that a variable moves: where it is, how large, how much room its disk has, whether it can be written."""
    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.exists(place))
    free = shutil.disk_usage(nearest).free / 2**30
    held = f"{folder_size_gib(folder):.2f} GiB" if os.path.isdir(folder) else "not there yet"
    state = f"{held} in {folder}, {free:.0f} GiB free"
    try:
        refuse_unwritable(folder, variable)
    except TenfoldError as error:
        return what, state, str(error)
    return what, state, "" if free > 5 else "free some space: a cold run needs about 5 GiB"


def _assets(missing: Callable[[], list[str]]) -> Row:
    pins = f"pinned in {pins_file()}"
    try:
        names = missing()
    except TenfoldError as error:
        return "assets", pins, str(error)
    if not names:
        return "assets", f"all here, {pins}", ""
    return "assets", f"missing: {', '.join(names)}; {pins}", "make assets" if lib.is_checkout() else "tenfold assets"


def _large_models() -> Row:
    try:
        states = on_demand()
    except TenfoldError as error:
        return "large models", "", str(error)
    return "large models", "; ".join(f"{name}: {state}" for name, state in states.items()), ""


def print_examination(rows: list[Row]) -> None:
    """Print the rows as a table."""
    from rich.markup import escape

    table = report.table("", "what", "state", "to do")
    for what, state, remedy in rows:
        table.add_row(what, escape(state), f"[bold]{escape(remedy)}[/]" if remedy else "[green]✔[/]")
    report.console().print(table)
