"""What runs inside the sandbox's workers (`python -I`: standard library only, nothing of Tenfold), and its messages.

Messages on pipes are a length (4 bytes, network order), then that many bytes.
"""

import os
import select
import struct
import time

HEADER = 4


class Unfinished(Exception):
    """A message did not come whole: `late` (its time was up), `ended` (the other side closed) or `long`."""


def send(pipe: int, body: bytes) -> None:
    """Write one message whole."""
    data = memoryview(struct.pack("!I", len(body)) + body)
    while data:
        data = data[os.write(pipe, data) :]


def receive(pipe: int, *, seconds: float | None = None, most: int | None = None) -> bytes:
    """Read one message of at most `most` bytes within `seconds`; raises Unfinished."""
    deadline = None if seconds is None else time.monotonic() + seconds
    (size,) = struct.unpack("!I", _exactly(pipe, HEADER, deadline))
    if most is not None and size > most:
        raise Unfinished("long")
    return _exactly(pipe, size, deadline)


def _exactly(pipe: int, size: int, deadline: float | None) -> bytes:
    parts = []
    while size:
        if deadline is not None and not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise Unfinished("late")
        part = os.read(pipe, min(size, 1 << 16))
        if not part:
            raise Unfinished("ended")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
