"""Rankers: models that say from an example and an instruction alone how well the instruction will do on it."""

from lib.autoinstruct.ranker.cross_encoder import CrossEncoder
from lib.autoinstruct.ranker.head import FrozenHead
from lib.autoinstruct.ranker.objectives import binary, listwise_kl, pointwise, target_distribution
from lib.autoinstruct.ranker.rows import LabelTable, Row, draw_rows, popularity, popularity_weights
from lib.autoinstruct.ranker.scorer import Scorer, load_scorer
from lib.autoinstruct.ranker.training import fit, predict
from lib.autoinstruct.ranker.yes_logit import YesLogit

__all__ = [
    "CrossEncoder",
    "FrozenHead",
    "LabelTable",
    "Row",
    "Scorer",
    "YesLogit",
    "binary",
    "draw_rows",
    "fit",
    "listwise_kl",
    "load_scorer",
    "pointwise",
    "popularity",
    "popularity_weights",
    "predict",
    "target_distribution",
]
