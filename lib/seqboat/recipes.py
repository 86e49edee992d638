"""The paper's hyper-parameters for each task (released scripts, as tabulated; sheet of arXiv:2306.11197).

`max_position_embeddings` is the task's length. Two sources disagree on Path-X's layers: the script's 4 is taken.
"""

from dataclasses import dataclass
from typing import Any

from lib.seqboat.configuration import SeqBoatConfig
from lib.seqboat.training import TrainingPlan


@dataclass(frozen=True)
class Recipe:
    """A model's configuration and how it is trained; `devices` is over how many the batch is repeated."""

    config: SeqBoatConfig
    plan: TrainingPlan
    devices: int = 1


_POST: dict[str, Any] = {"norm": "scale", "prenorm": False, "dropout": 0.1, "attention_function": "softmax"}
_PRE: dict[str, Any] = {"norm": "batch", "prenorm": True, "attention_function": "relu2"}
_PIXELS: dict[str, Any] = {**_PRE, "inputs": "values", "positions": "relative", "absolute_positions": True}


def _sizes(layers: int, d: int, h: int, z: int) -> dict[str, Any]:
    return {"num_hidden_layers": layers, "hidden_size": d, "value_size": h, "key_size": z}


_TABLE: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "listops": (
        {**_sizes(6, 80, 160, 64), **_POST, "norm": "layer", "positions": "relative", "truncation": 1024,
         "max_position_embeddings": 2000, "vocab_size": 16, "pad_token_id": 0, "num_labels": 10},
        {"learning_rate": 0.004, "weight_decay": 0.001, "batch_size": 64, "steps": 90_000, "warmup": 27_000}, 1,
    ),
    "text": (
        {**_sizes(4, 128, 256, 64), **_POST, "positions": "local", "vocab_size": 257, "pad_token_id": 0},
        {"learning_rate": 0.004, "weight_decay": 0.01, "batch_size": 50, "steps": 25_000, "warmup": 10_000}, 1,
    ),
    "retrieval": (
        {**_sizes(6, 128, 256, 64), **_POST, "positions": "relative", "vocab_size": 257, "pad_token_id": 0},
        {"learning_rate": 0.003, "weight_decay": 0.04, "batch_size": 8, "steps": 91_960, "warmup": 10_000}, 8,
    ),
    "image": (
        {**_sizes(8, 160, 320, 96), **_PIXELS, "temperature_scale": 0.4, "max_position_embeddings": 1024,
         "num_labels": 10},
        {"learning_rate": 0.01, "weight_decay": 0.02, "batch_size": 50, "steps": 180_000, "warmup": 9_000}, 1,
    ),
    "pathfinder": (
        {**_sizes(6, 128, 256, 64), **_PIXELS, "temperature_scale": 1.0, "max_position_embeddings": 1024},
        {"learning_rate": 0.01, "weight_decay": 0.01, "batch_size": 128, "steps": 250_000, "warmup": 50_000}, 1,
    ),
    "pathx": (
        {**_sizes(4, 128, 256, 64), **_PIXELS, "temperature_scale": 1.0, "window": 256, "truncation": 16_384,
         "max_position_embeddings": 16_384},
        {"learning_rate": 0.01, "weight_decay": 0.01, "batch_size": 2, "steps": 125_000, "warmup": 25_000,
         "power": 2.0}, 64,
    ),
    "speech": (
        {**_sizes(8, 60, 120, 30), **_PIXELS, "positions": "local", "temperature_scale": 1.0, "truncation": 4000,
         "max_position_embeddings": 16_000, "num_labels": 10},
        {"learning_rate": 0.01, "weight_decay": 0.01, "batch_size": 20, "steps": 250_000, "warmup": 10_000}, 1,
    ),
    "enwik8": (
        {**_sizes(14, 616, 1232, 128), "norm": "layer", "prenorm": True, "final_affine": False, "dropout": 0.15,
         "attention_function": "softmax", "positions": "rotary", "temperature_scale": 1.0, "window": 1024,
         "truncation": 2048, "max_position_embeddings": 8192, "vocab_size": 257, "pad_token_id": 0,
         "is_decoder": True},
        {"learning_rate": 0.005, "weight_decay": 0.1, "batch_size": 1, "steps": 400_000, "warmup": 24_000, "clip": 0.25,
         "optimizer": "radam"}, 8,
    ),
}  # fmt: skip
RECIPES = tuple(_TABLE)


def recipe(name: str, **changes: Any) -> Recipe:
    """Return the paper's settings for a task, with fields of the configuration changed; ValueError if unknown."""
    if name not in _TABLE:
        raise ValueError(f"no recipe is named {name!r}: use one of {', '.join(RECIPES)}")
    fields, plan, devices = _TABLE[name]
    return Recipe(SeqBoatConfig(**(fields | changes)), TrainingPlan(**plan), devices)
