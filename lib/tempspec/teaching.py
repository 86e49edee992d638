"""Teach a drafter to speak like its target: arXiv:2410.10141's pipeline, with the losses of arXiv:2310.08461.

The target answers prompts at each temperature of a list (equal shares; several temperatures are the paper's remedy for
decoding hot), and the drafter is trained on the answers' tokens only, by `transformers.Trainer`.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from lib.tempspec.feature import FeatureModel
from lib.tempspec.heads import reduced_logits
from lib.tempspec.lessons import Batch, Example, answer, collate, observe
from lib.tempspec.losses import LOSSES, divergence, draft_log_probs

STALEST = 3  # a feature drafter is taught with features up to this many tokens old


def distill(
    target: Any,
    drafter: Any,
    prompts: Sequence[Sequence[int]],
    *,
    temperatures: Sequence[float] = (1.0,),
    loss: str = "ce",
    max_new_tokens: int = 64,
    seed: int = 0,
    **training: Any,
) -> Any:
    """Answer the prompts (token ids), share them equally among the temperatures, and train the drafter on the answers.

    `drafter` is a causal language model or a `FeatureModel`; it is trained in place and returned. `training` goes to
    `teach`. Raises ValueError where there are fewer prompts than temperatures.
    """
    if len(prompts) < len(temperatures) or not temperatures:
        raise ValueError(f"{len(prompts)} prompts cannot be shared among {len(temperatures)} temperatures")
    generator = torch.Generator(target.device).manual_seed(seed)
    examples: list[Example] = []
    for share, temperature in enumerate(temperatures):
        part = prompts[share :: len(temperatures)]
        examples += answer(target, part, temperature, max_new_tokens=max_new_tokens, generator=generator)
    return teach(drafter, examples, target=target, loss=loss, seed=seed, **training)


def teach(
    drafter: Any,
    examples: Sequence[Example] | Sequence[Batch],
    *,
    target: Any = None,
    loss: str = "ce",
    top: int = 32,
    epochs: int = 2,
    batch_size: int = 16,
    learning_rate: float = 5e-4,
    seed: int = 0,
    output_dir: Path | str | None = None,
    progress: bool = True,
) -> Any:
    """Train a drafter on examples, in place, in bfloat16 with float32 weights; returns it in eval mode.

    The target's opinion is taken once, before training (or was taken before, where `examples` are batches made by
    `prepare`); the loss `ce` on a plain language model needs none. With an `output_dir`, every epoch leaves a
    checkpoint and a second call continues from the last one.
    Raises ValueError for an unknown loss, no examples, or a loss or drafter that needs a target when there is none.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}: use one of {', '.join(LOSSES)}")
    if not examples:
        raise ValueError("there are no examples: give some prompts with answers")
    batches = [item for item in examples if isinstance(item, Batch)]
    if not batches:
        layers = drafter.layers if isinstance(drafter, FeatureModel) else ()
        asked = target if loss != "ce" or layers else None
        if asked is None and (loss != "ce" or layers):
            raise ValueError(f"a loss {loss!r} on a {type(drafter).__name__} needs the target: pass target=…")
        batches = prepare(cast(Sequence[Example], examples), asked, batch_size=batch_size, top=top, layers=layers)
    student = Student(drafter.float(), loss)
    folder = Path(tempfile.mkdtemp()) if output_dir is None else Path(output_dir)
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=1,  # an item is a whole batch, made once with the target's opinion of it
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(20, len(batches) // 2),
        weight_decay=0.01,
        adam_beta2=0.95,
        bf16=True,
        use_cpu=next(student.parameters()).device.type == "cpu",
        seed=seed,
        save_strategy="no" if output_dir is None else "epoch",
        save_total_limit=1,
        report_to=[],
        disable_tqdm=not progress,
        logging_strategy="no",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=student, args=arguments, train_dataset=_Items(batches), data_collator=_only)
    trainer.remove_callback(PrinterCallback)
    last = get_last_checkpoint(str(folder)) if folder.is_dir() and output_dir is not None else None
    trainer.train(resume_from_checkpoint=last)
    return drafter.eval()


class Student(nn.Module):
    """A drafter with its loss, as `Trainer` wants it (and as distributed wrappers need it: one forward)."""

    def __init__(self, drafter: Any, loss: str) -> None:
        super().__init__()
        self.drafter, self.loss = drafter, loss

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Mean loss in nats over the scored positions of a batch."""
        logits, kept = self._logits(batch)
        vocab = self._vocab()
        if self.loss == "ce":
            wanted, temperature = batch.targets[:, None], torch.ones_like(batch.temperature)
            log_q = draft_log_probs(logits, kept, wanted, temperature, vocab)[:, 0]
            known = log_q > -torch.inf  # a token outside the reduced head teaches nothing
            return {"loss": -log_q[known].mean()}
        temperature = torch.where(batch.temperature > 0, batch.temperature, 1.0)
        assert batch.top_ids is not None
        assert batch.top_log_probs is not None
        log_q = draft_log_probs(logits, kept, batch.top_ids, temperature, vocab)
        return {"loss": divergence(self.loss, batch.top_log_probs, log_q).mean()}

    def _logits(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        if isinstance(self.drafter, FeatureModel):
            assert batch.features is not None
            lag = 1 + int(torch.randint(0, STALEST, ()))
            hidden = self.drafter(batch.tokens, batch.features, lag=lag)
            return reduced_logits(self.drafter.head, hidden[batch.scored])
        hidden = self.drafter.get_decoder()(batch.tokens, use_cache=False).last_hidden_state
        return reduced_logits(self.drafter.get_output_embeddings(), hidden[batch.scored])

    def _vocab(self) -> int:
        if isinstance(self.drafter, FeatureModel):
            return self.drafter.head.vocab_size
        return self.drafter.config.vocab_size


class _Items(torch.utils.data.Dataset):
    """Whole batches as the items of a data set."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return self.batches[index]


def _only(items: list[Batch]) -> dict[str, Batch]:
    return {"batch": items[0]}


def prepare(
    examples: Sequence[Example],
    target: Any,
    *,
    batch_size: int = 16,
    top: int = 32,
    layers: tuple[int, ...] = (),
) -> list[Batch]:
    """Batches of examples of similar length, with the target's opinion where there is a target."""
    order = sorted(examples, key=lambda example: len(example.tokens))
    groups = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if target is None:
        return [collate(group) for group in groups]
    watched = tqdm(groups, desc="the target's opinion", unit="batch", mininterval=5, leave=False)
    return list(observe(target, watched, top=top, layers=layers))
