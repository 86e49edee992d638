"""A file of JSON lines that only grows: what was finished before a crash is there after it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def read(path: Path | None) -> list[dict[str, Any]]:
    """Records of a journal, none where there is no file; a line that a crash cut off is left out."""
    if path is None or not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def append(path: Path | None, records: Iterable[dict[str, Any]]) -> None:
    """Add records, on lines of their own also after a line that was cut off; without a path nothing is kept."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write("".join(json.dumps(record) + "\n" for record in records).encode("utf8"))
