"""Make what the repository ships, each file with a card: `make train PAPER=…` and `make replies PAPER=…`.

A room's `study/train.py` has `train(folder, *, seed)`: it writes `<name>.safetensors` files into the folder, going on
where it was stopped, and returns facts for their cards (`{name: {"minutes": …}}`). Its `study/replies.py` has
`record(client)`: it asks everything that the notebook asks.
"""

import importlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib import TenfoldError
from lib.core.chat import ChatClient, Decoding, Messages, Recorder, Reply, reply_key, write_replies
from lib.core.store import Journal
from lib.lab import paths, provenance
from lib.zoo import shipped


def train(paper: str, *, seed: int = 0) -> list[Path]:
    """Make a paper's shipped weights; return the files. Raises TenfoldError where one is over what may be shipped."""
    study, folder, began = _study(paper, "train"), shipped.folder(paper), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    facts: Mapping[str, Mapping[str, Any]] = study.train(folder, seed=seed)
    minutes = round((time.monotonic() - began) / 60, 1)
    for name, told in facts.items():
        path = folder / f"{name}.safetensors"
        _refuse_large(path)
        shipped.write_card(
            path, **_origin(paper, f"make train PAPER={paper} SEED={seed}"), **({"minutes": minutes} | dict(told))
        )
    return [folder / f"{name}.safetensors" for name in facts]


def record_replies(paper: str, *, model: str, url: str = "") -> int:
    """Ask a model all that a paper's notebook asks, and write the replies; return their number.

    The model answers at an endpoint, or in this process where no address is given and the study can load it
    (`local(model)`). Every reply is kept as it comes (in the cache), so that a recording that was stopped goes on where
    it was; what an earlier recording of the same model holds is not asked again, and what is no longer asked is left
    out.
    """
    study, path, began = _study(paper, "replies"), shipped.folder(paper) / shipped.REPLIES, time.monotonic()
    journal = Journal(paths.cache_dir() / paper / "replies.sqlite")
    if path.exists() and shipped.card_of(path)["model"] == model:
        journal.put_many({key: row for key, row in shipped.replies(paper).rows.items() if key not in journal})
    if not url and not hasattr(study, "local"):
        raise TenfoldError(f"{paper}'s replies are recorded from an endpoint: give its address, URL=http://…/v1.")
    chat = (
        ChatClient(model=model, url=url, journal=journal, concurrency=4, seconds=600)
        if url
        else Recorder(study.local(model), journal)
    )
    client = Noting(chat)
    study.record(client)
    count = write_replies(path, {key: row for key, row in journal.items() if key in client.asked})
    _refuse_large(path)
    minutes, command = round((time.monotonic() - began) / 60, 1), f"make replies PAPER={paper} MODEL={model}"
    shipped.write_card(path, **_origin(paper, command), model=model, replies=count, minutes=minutes)
    return count


@dataclass
class Noting:
    """A chat that notes the keys of what it was asked."""

    chat: ChatClient | Recorder
    asked: set[str] = field(default_factory=set)

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.chat.model

    def complete(self, messages: Messages, decoding: Decoding | None = None, *, attempt: int = 0) -> Reply:
        """Return the chat's reply."""
        self.asked.add(reply_key(self.model, messages, decoding or self.chat.decoding, attempt))
        return self.chat.complete(messages, decoding, attempt=attempt)

    def complete_many(
        self, questions: Sequence[Messages], decoding: Decoding | None = None, *, attempt: int = 0
    ) -> list[Any]:
        """Return the chat's replies in order."""
        settings = decoding or self.chat.decoding
        self.asked.update(reply_key(self.model, messages, settings, attempt) for messages in questions)
        return list(self.chat.complete_many(questions, decoding, attempt=attempt))


def _study(paper: str, module: str) -> Any:
    paths.notebook_of(paper)
    try:
        return importlib.import_module(f"lib.{paper}.study.{module}")
    except ModuleNotFoundError as error:
        if error.name != f"lib.{paper}.study.{module}":
            raise
        raise TenfoldError(f"{paper} ships nothing of this kind: it has no lib/{paper}/study/{module}.py.") from None


def _origin(paper: str, command: str) -> dict[str, Any]:
    state, machine = provenance.git_state(f"data/weights/{paper}"), provenance.machine()
    return {
        "command": command,
        "commit": state["commit"] and state["commit"] + (" with changes" if state["dirty"] else ""),
        "machine": f"{machine['processor']}, {os.cpu_count()} cores",
        "versions": provenance.versions(),
    }


def _refuse_large(path: Path) -> None:
    if path.stat().st_size > shipped.LARGEST:
        raise TenfoldError(
            f"{path.parent.name}/{path.name} has {path.stat().st_size / 2**20:.1f} MiB: at most "
            f"{shipped.LARGEST / 2**20:g} MiB a file are shipped, so make it smaller."
        )
