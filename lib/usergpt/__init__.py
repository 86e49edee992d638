"""UserGPT: what people ask language models for, against what benchmarks test (arXiv:2310.12418).

A corpus is read (`conversations`), masked (`privacy`), labelled by an `Annotator` (`zero_shot`, `chat_annotator`),
checked against labels of people (`gold`), and compared with the benchmark side (`benchmarks`, `compare`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lib.usergpt.annotation import Annotation, Annotator
from lib.usergpt.conversations import Conversation, ConversationReader, draw
from lib.usergpt.gold import agreement, load_gold
from lib.usergpt.privacy import mask, masked_excerpt
from lib.usergpt.taxonomy import Taxonomy, load_taxonomy

if TYPE_CHECKING:
    from lib.usergpt.zero_shot import Cut, EmbeddingAnnotator

PLACES = {"EmbeddingAnnotator": "zero_shot", "Cut": "zero_shot"}
__all__ = [
    "Annotation",
    "Annotator",
    "Conversation",
    "ConversationReader",
    "Cut",
    "EmbeddingAnnotator",
    "Taxonomy",
    "agreement",
    "draw",
    "load_gold",
    "load_taxonomy",
    "mask",
    "masked_excerpt",
]


def __getattr__(name: str) -> Any:
    if name in PLACES:
        return getattr(import_module(f"lib.usergpt.{PLACES[name]}"), name)
    raise AttributeError(f"module 'lib.usergpt' has no attribute {name!r}")
