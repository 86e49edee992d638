"""The drafters that the notebook trains: the target without some layers, with an adapter, and a feature drafter."""

import copy
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from lib.core.scoring import decoder_of
from lib.tempspec.answers import Example, teaching_batches
from lib.tempspec.feature import FeatureModel, fit_maps
from lib.tempspec.modeling import load_drafter, save_drafter, truncate
from lib.tempspec.trainer import teach

ADAPTER = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "exclude_modules": ["lm_head"]}


class Shortened(nn.Module):
    """A target without its layers from `cut` to `rest`: the lower ones are its own, the upper ones copies that learn.

    So one pass of the target gives all such drafters what they read (its hidden states at `cut`), and only the layers
    above are run and trained, with a small adapter (LoRA). `as_model` makes it a language model of its own.
    """

    def __init__(
        self, target: Any, *, cut: int, rest: int, token_ids: Int[Tensor, " kept"], adapter: Path | None = None
    ) -> None:
        super().__init__()
        self.layers, self.rest, self.token_ids = (cut,), rest, token_ids
        upper = truncate(target, range(rest, target.config.num_hidden_layers), token_ids=token_ids)
        self.upper: Any
        if adapter is None:
            self.upper = get_peft_model(upper, LoraConfig(**ADAPTER))
        else:
            self.upper = PeftModel.from_pretrained(upper, adapter)
        self.config = target.config

    def get_output_embeddings(self) -> Any:
        """Return the head, which is not trained."""
        return self.upper.get_base_model().get_output_embeddings()

    def forward(
        self, tokens: Int[Tensor, "batch length"], features: Float[Tensor, "batch length width"], *, lag: int = 1
    ) -> Float[Tensor, "batch length width"]:
        """Return last hidden states from the target's at `cut`; there is nothing stale about them, whatever the lag."""
        decoder = decoder_of(self.upper)
        return decoder(inputs_embeds=features.to(decoder.dtype), use_cache=False).last_hidden_state

    def as_model(self, target: Any) -> Any:
        """Return it with its lower layers, as a language model in the target's dtype."""
        chosen = [*range(self.layers[0]), *range(self.rest, target.config.num_hidden_layers)]
        model, cut = truncate(target, chosen, token_ids=self.token_ids), self.layers[0]
        merged = self.upper.merge_and_unload().to(target.dtype)
        for place, layer in enumerate(merged.model.layers):
            model.model.layers[cut + place].load_state_dict(layer.state_dict())
        return model


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
    checkpoints: Path | None = None,
    **shape: Any,
) -> FeatureModel:
    """A feature drafter: started by ridge regression, taught on others' texts, then on the target's own answers.

    `layers` must hold the input of the target's last layer: its number of layers less one. `shape` is what else a
    `FeatureModel` takes. With a folder for `checkpoints`, every epoch leaves one, and a second call goes on from it.
    """
    torch.manual_seed(seed)
    network = FeatureModel(target, layers=layers, token_ids=token_ids, **shape)
    ours, theirs = (teaching_batches(examples, target, layers=layers) for examples in (answers, texts))
    mixed = [batch for pair in zip_longest(ours, theirs[::-1]) for batch in pair if batch is not None]
    fit_maps(network, mixed, wanted=target.config.num_hidden_layers - 1)
    options: dict[str, Any] = {"loss": "fkl", "seed": seed}
    first, second = (None if checkpoints is None else checkpoints / part for part in ("texts", "answers"))
    teach(network, theirs, epochs=text_epochs, learning_rate=learning_rate, output_dir=first, **options)
    return teach(network, ours, epochs=answer_epochs, learning_rate=0.7 * learning_rate, output_dir=second, **options)


def keep(student: Any, folder: Path) -> None:
    """Write a student: a shortened target's adapter, or a language model."""
    if isinstance(student, Shortened):
        student.upper.save_pretrained(str(folder))
    else:
        save_drafter(student, folder)


def fetch(folder: Path, target: Any, untuned: Any) -> Any:
    """Read what `keep` wrote of a student that began as `untuned`."""
    if not isinstance(untuned, Shortened):
        return load_drafter(folder, target)
    options: dict[str, Any] = {"cut": untuned.layers[0], "rest": untuned.rest, "token_ids": untuned.token_ids}
    return Shortened(target, **options, adapter=folder).eval()


def as_model(student: Any, target: Any) -> Any:
    """Return a student as a language model in the target's dtype, which decoding and transformers can use."""
    student = copy.deepcopy(student).to(target.device)
    return student.as_model(target) if isinstance(student, Shortened) else student.to(target.dtype)
