"""Real models and real data by short name; nothing paper-specific. Heavy libraries are imported on use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lib.zoo.assets import fetch_all, fingerprint, missing, on_demand

if TYPE_CHECKING:
    from lib.zoo.datasets import load_dataset, stream_dataset
    from lib.zoo.models import SHAPES, describe, load_encoder, load_lm, meta_lm

PLACES = {
    "load_lm": "models",
    "load_encoder": "models",
    "describe": "models",
    "load_dataset": "datasets",
    "stream_dataset": "datasets",
    "meta_lm": "models",
    "SHAPES": "models",
}
__all__ = [
    "SHAPES",
    "describe",
    "fetch_all",
    "fingerprint",
    "load_dataset",
    "load_encoder",
    "load_lm",
    "meta_lm",
    "missing",
    "on_demand",
    "stream_dataset",
]


def __getattr__(name: str) -> Any:
    if name in PLACES:
        return getattr(import_module(f"lib.zoo.{PLACES[name]}"), name)
    raise AttributeError(f"module 'lib.zoo' has no attribute {name!r}")
