"""UserGPT: what people ask language models for, against what benchmarks test (arXiv:2310.12418).

A corpus is read (`conversations`), masked (`privacy`), labelled by an `Annotator` (`zero_shot`, `chat_annotator`),
checked against labels of people (`gold`), and compared with the benchmark side (`benchmarks`, `compare`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lib.usergpt.annotation import Annotation, Annotator
from lib.usergpt.chat_annotator import ChatAnnotator
from lib.usergpt.chat_models import EndpointChatModel, LocalChatModel
from lib.usergpt.conversations import Conversation, ConversationReader, draw
from lib.usergpt.demonstrations import DemonstrationPool, load_demonstrations
from lib.usergpt.gold import agreement, load_gold
from lib.usergpt.privacy import mask, masked_excerpt
from lib.usergpt.streaming import annotate_corpus
from lib.usergpt.taxonomy import Taxonomy, load_taxonomy

if TYPE_CHECKING:
    from lib.usergpt.calibration import CalibratedAnnotator
    from lib.usergpt.zero_shot import Cut, EmbeddingAnnotator

PLACES = {"EmbeddingAnnotator": "zero_shot", "Cut": "zero_shot", "CalibratedAnnotator": "calibration"}
__all__ = [
    "Annotation",
    "Annotator",
    "CalibratedAnnotator",
    "ChatAnnotator",
    "Conversation",
    "ConversationReader",
    "Cut",
    "DemonstrationPool",
    "EmbeddingAnnotator",
    "EndpointChatModel",
    "LocalChatModel",
    "Taxonomy",
    "agreement",
    "annotate_corpus",
    "draw",
    "load_demonstrations",
    "load_gold",
    "load_taxonomy",
    "mask",
    "masked_excerpt",
]


def __getattr__(name: str) -> Any:
    if name in PLACES:
        return getattr(import_module(f"lib.usergpt.{PLACES[name]}"), name)
    raise AttributeError(f"module 'lib.usergpt' has no attribute {name!r}")
