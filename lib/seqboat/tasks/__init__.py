"""Tasks of known difficulty: generated, or cut from real text and images; the length of each can be set."""

from lib.seqboat.tasks.digits import sequential_digits
from lib.seqboat.tasks.examples import Examples
from lib.seqboat.tasks.listops import generate_listops
from lib.seqboat.tasks.pathfinder import generate_pathfinder
from lib.seqboat.tasks.records import grey_pixels, labelled_bytes, waveforms
from lib.seqboat.tasks.text import byte_authorship, byte_windows, encode_bytes

__all__ = [
    "Examples",
    "byte_authorship",
    "byte_windows",
    "encode_bytes",
    "generate_listops",
    "generate_pathfinder",
    "grey_pixels",
    "labelled_bytes",
    "sequential_digits",
    "waveforms",
]
