"""What the repository ships: small trained weights and a model's recorded replies, each file beside a card.

`data/weights/<paper>/<file>` and `<file>.card.json`, which says how the file was made (command, commit, seed, minutes,
machine) and its sha256. `make train PAPER=…` and `make replies PAPER=…` make them again.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lib
from lib import TenfoldError
from lib.core.chat import Decoding, Replayer

REPLIES = "replies.jsonl.gz"
CARD = ".card.json"
LARGEST, LARGEST_IN_ALL = 12 * 2**20, 40 * 2**20  # bytes of one file, and of all that is shipped


def folder(paper: str) -> Path:
    """Folder of what is shipped for a paper: in the checkout, wherever assets and caches are."""
    return lib.root() / "data" / "weights" / paper


def weights(paper: str, name: str) -> Path:
    """Path of shipped weights; raises TenfoldError where they are missing or are not those of their card."""
    return _checked(folder(paper) / f"{name}.safetensors", f"make train PAPER={paper}")


def replies(paper: str, *, decoding: Decoding | None = None) -> Replayer:
    """A chat that answers from the replies recorded for a paper; raises TenfoldError as `weights` does."""
    path = _checked(folder(paper) / REPLIES, f"make replies PAPER={paper}")
    return Replayer(path, card_of(path)["model"], decoding=decoding)


def files() -> Iterator[Path]:
    """Every shipped file, cards apart."""
    places = sorted((lib.root() / "data" / "weights").glob("*/*"))
    return (path for path in places if path.is_file() and not path.name.endswith(CARD) and path.name[0] != ".")


def fingerprint(paper: str) -> str:
    """What a paper's shipped files are, for the key of a stage that reads them: one hash of their cards' hashes."""
    cards = sorted(folder(paper).glob(f"*{CARD}"))
    return hashlib.sha256("".join(f"{c.name}{_read(c)['sha256']}" for c in cards).encode()).hexdigest() if cards else ""


def card_of(path: Path) -> dict[str, Any]:
    """The card of a shipped file; raises TenfoldError where there is none."""
    return _read(path.with_name(path.name + CARD))


def write_card(path: Path, **facts: Any) -> None:
    """Write the card of a file that was just made: the `facts` and its sha256."""
    card = facts | {"sha256": _sha256(path), "bytes": path.stat().st_size}
    place = path.with_name(path.name + CARD)
    temporary = place.with_name(f".{place.name}")
    temporary.write_text(json.dumps(card, indent=1, sort_keys=True) + "\n", encoding="utf8")
    temporary.replace(place)


def _checked(path: Path, command: str) -> Path:
    if not path.exists():
        raise TenfoldError(
            f"{path.parent.name}/{path.name} is shipped in the repository's data/weights and is not here: "
            f"`git checkout -- data/weights` brings it back, and `{command}` makes it again."
        )
    if _sha256(path) != card_of(path).get("sha256"):
        raise TenfoldError(
            f"{path.parent.name}/{path.name} in data/weights is not the file of its card (its sha256 differs): "
            f"`git checkout -- data/weights` brings it back, and `{command}` makes it again."
        )
    return path


def _read(card: Path) -> dict[str, Any]:
    try:
        return json.loads(card.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise TenfoldError(
            f"the card {card.parent.name}/{card.name} in data/weights cannot be read ({error}): "
            "`git checkout -- data/weights` brings it back."
        ) from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
