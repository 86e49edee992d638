"""The drafters that the `cpu` profile trains, so that a notebook and a benchmark speak of the same ones."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lib.tempspec.feature import FeatureModel
from lib.tempspec.lessons import Example
from lib.tempspec.teaching import teach
from lib.tempspec.truncate import truncate


def untuned_drafter(
    target: Any,
    texts: Sequence[Example],
    *,
    layers: Sequence[int],
    token_ids: Int[Tensor, " kept"],
    epochs: int = 2,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> Any:
    """A small language model of a few of the target's layers, trained on texts that the target did not write.

    It stands for the paper's 68 M Llama: a model of the same vocabulary that knows text, but not its target.
    """
    drafter = truncate(target, layers, token_ids=token_ids).float()
    return teach(drafter, texts, loss="ce", epochs=epochs, learning_rate=learning_rate, seed=seed)


def feature_drafter(
    target: Any,
    texts: Sequence[Example],
    answers: Sequence[Example],
    *,
    layers: tuple[int, ...],
    token_ids: Int[Tensor, " kept"],
    text_epochs: int = 1,
    answer_epochs: int = 2,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> FeatureModel:
    """A feature drafter: first on others' texts, of which there is plenty, then on the target's own answers."""
    torch.manual_seed(seed)
    network = FeatureModel(target, layers=layers, token_ids=token_ids)
    options: dict[str, Any] = {"target": target, "loss": "fkl", "seed": seed}
    teach(network, texts, epochs=text_epochs, learning_rate=learning_rate, **options)
    return teach(network, answers, epochs=answer_epochs, learning_rate=0.7 * learning_rate, **options)
