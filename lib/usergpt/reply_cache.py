"""Replies of a chat model kept on disk as they come, so that an interrupted run goes on where it was.

One JSON line a reply, keyed by a hash of model, settings, prompt and attempt; prompts themselves are not stored.
"""

import hashlib
import json
from pathlib import Path


class ReplyCache:
    """Replies by key, appended to a file at once; a last line that a kill has torn is ignored and overwritten."""

    def __init__(self, path: Path | None = None) -> None:
        self.path, self.replies = path, {}
        if path is not None and path.exists():
            whole = 0
            with path.open("rb") as file:
                for line in file:
                    try:
                        row = json.loads(line)
                        self.replies[row["key"]] = row["reply"]
                    except (ValueError, KeyError, TypeError):
                        break
                    whole += len(line)
            with path.open("rb+") as file:
                file.truncate(whole)

    def get(self, key: str) -> str | None:
        """Reply kept under a key, or None."""
        return self.replies.get(key)

    def put(self, key: str, reply: str) -> None:
        """Keep a reply, in memory and at the end of the file."""
        self.replies[key] = reply
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf8") as file:
                file.write(json.dumps({"key": key, "reply": reply}) + "\n")

    def __len__(self) -> int:
        return len(self.replies)


def key_of(*parts: object) -> str:
    """Hash of what a reply depends on."""
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:32]
