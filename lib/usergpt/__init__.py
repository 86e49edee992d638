"""UserGPT: what people ask language models for, against what benchmarks test (arXiv:2310.12418).

A corpus is read (`conversations`), masked (`privacy`), labelled by an `Annotator` (`similarity`, `chat_annotator`) part
by part (`annotation`), checked against labels of people (`taxonomy`), and compared with benchmarks (`compare`).
"""

from lib.core.local_chat import LocalChat
from lib.usergpt.annotation import annotate_corpus, read_annotations
from lib.usergpt.chat_annotator import ChatAnnotator, ChatModel, FreeForm, Guide
from lib.usergpt.compare import distribution, divergence, labelled, rectified, share_table
from lib.usergpt.conversations import Annotation, Annotator, Conversation, ConversationReader, draw
from lib.usergpt.merging import merge_labels
from lib.usergpt.pool import DemonstrationPool, load_demonstrations
from lib.usergpt.privacy import mask, masked_excerpt
from lib.usergpt.report import report
from lib.usergpt.similarity import CalibratedAnnotator, Cut, EmbeddingAnnotator
from lib.usergpt.taxonomy import GoldLabel, Taxonomy, agreement, load_gold, load_taxonomy

__all__ = [
    "Annotation",
    "Annotator",
    "CalibratedAnnotator",
    "ChatAnnotator",
    "ChatModel",
    "Conversation",
    "ConversationReader",
    "Cut",
    "DemonstrationPool",
    "EmbeddingAnnotator",
    "FreeForm",
    "GoldLabel",
    "Guide",
    "LocalChat",
    "Taxonomy",
    "agreement",
    "annotate_corpus",
    "distribution",
    "divergence",
    "draw",
    "labelled",
    "load_demonstrations",
    "load_gold",
    "load_taxonomy",
    "mask",
    "masked_excerpt",
    "merge_labels",
    "read_annotations",
    "rectified",
    "report",
    "share_table",
]
