"""The drafters that the `cpu` profile trains, so that a notebook and a benchmark speak of the same ones."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lib.tempspec.answers import Example, teaching_batches
from lib.tempspec.feature import FeatureModel, fit_maps
from lib.tempspec.modeling import truncate
from lib.tempspec.trainer import teach


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
    learning_rate: float = 5e-4,
    seed: int = 0,
) -> FeatureModel:
    """A feature drafter: started by ridge regression, taught on others' texts, then on the target's own answers.

    `layers` must hold the input of the target's last layer: its number of layers less one.
    """
    torch.manual_seed(seed)
    network = FeatureModel(target, layers=layers, token_ids=token_ids)
    ours, theirs = (teaching_batches(examples, target, layers=layers) for examples in (answers, texts))
    mixed = [batch for pair in zip_longest(ours, theirs[::-1]) for batch in pair if batch is not None]
    fit_maps(network, mixed, wanted=target.config.num_hidden_layers - 1)
    options: dict[str, Any] = {"loss": "fkl", "seed": seed}
    teach(network, theirs, epochs=text_epochs, learning_rate=learning_rate, **options)
    return teach(network, ours, epochs=answer_epochs, learning_rate=0.7 * learning_rate, **options)
