"""Teach a drafter to speak like its target: arXiv:2410.10141's pipeline, with the losses of arXiv:2310.08461.

The target answers prompts at each temperature of a list (equal shares; several temperatures are the paper's remedy for
decoding hot), and the drafter is trained on the answers' tokens only, by `transformers.Trainer`.

Symbols: p = target, q = drafter, both at the temperature that the answer was sampled at. arXiv:2410.10141 trains on
sampled answers (`ce`); the other losses are those of arXiv:2310.08461 (DistillSpec), on distributions coarsened to the
target's top-k tokens and one outcome for the rest (1 - sum over the top k): a lower bound of the whole divergence.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from lib.tempspec.answers import Example, TeachingBatch, answer, draft_states, teaching_batches
from lib.tempspec.drafters import vocabularies
from lib.tempspec.modeling import known_logits

STALEST = 3  # a feature drafter is taught with features up to this many tokens old


FLOOR = 1e-8


def _forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    middle = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0))
    return (_forward_kl(log_p, middle) + _forward_kl(log_q, middle)) / 2


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "fkl": _forward_kl,
    "rkl": lambda log_p, log_q: _forward_kl(log_q, log_p),
    "jsd": _jensen_shannon,
    "tvd": lambda log_p, log_q: (log_p.exp() - log_q.exp()).abs().sum(-1) / 2,
}
LOSSES = ("ce", *DIVERGENCES)


def divergence(
    name: str, target_log_probs: Float[Tensor, "tokens top"], draft_log_probs: Float[Tensor, "tokens top"]
) -> Float[Tensor, " tokens"]:
    """Return the divergence of each token's distributions, given both log-probabilities of the target's top tokens.

    Raises ValueError for an unknown name.
    """
    if name not in DIVERGENCES:
        raise ValueError(f"loss is {name!r}: use one of {', '.join(LOSSES)}")
    return DIVERGENCES[name](with_rest(target_log_probs), with_rest(draft_log_probs))


def with_rest(log_probs: Float[Tensor, "tokens top"]) -> Float[Tensor, "tokens top+1"]:
    """Append the log-probability of everything else; a token without probability counts as 1e-8."""
    rest = (1 - log_probs.exp().sum(-1, keepdim=True)).clamp(min=FLOOR).log()
    return torch.cat([log_probs, rest], dim=-1).clamp(min=torch.log(torch.tensor(FLOOR)).item())


def draft_log_probs(
    logits: Float[Tensor, "tokens kept"],
    kept: Int[Tensor, " kept"] | None,
    wanted: Int[Tensor, "tokens top"],
    temperature: Float[Tensor, " tokens"],
) -> Float[Tensor, "tokens top"]:
    """Return the log-probabilities that a drafter gives to wanted tokens; -inf where its reduced head lacks them."""
    log_q = (logits.float() / temperature[:, None]).log_softmax(-1)
    if kept is None:
        return log_q.gather(-1, wanted)
    place = torch.full((1 + int(max(kept.max(), wanted.max())),), -1, device=kept.device)
    place[kept] = torch.arange(len(kept), device=kept.device)
    columns = place[wanted]
    return log_q.gather(-1, columns.clamp(min=0)).masked_fill(columns < 0, -torch.inf)


def distill(
    target: Any,
    drafter: Any,
    prompts: Sequence[Sequence[int]] | Sequence[str],
    *,
    temperatures: Sequence[float] = (1.0,),
    max_new_tokens: int = 64,
    loss: str = "ce",
    top: int = 32,
    epochs: int = 2,
    batch_size: int = 16,
    learning_rate: float = 5e-4,
    seed: int = 0,
    output_dir: Path | str | None = None,
    progress: bool = True,
    tokenizer: Any = None,
) -> Any:
    """Answer the prompts, share them equally among the temperatures, and train the drafter on the answers.

    Prompts are token ids, or strings where there is a `tokenizer`; one string is one prompt. `drafter` is a causal
    language model or a `FeatureModel`; it is trained in place by `teach`, which explains the options, and returned in
    the target's dtype.
    Raises ValueError for an unknown loss, fewer prompts than temperatures, or vocabularies that differ, and TypeError
    for strings without a tokenizer.
    """
    _check_loss(loss)
    vocabularies(target, drafter)
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if any(isinstance(prompt, str) for prompt in prompts):
        if tokenizer is None:
            raise TypeError("prompts are strings: give a tokenizer, or token ids")
        prompts = tokenizer(list(prompts)).input_ids
    if len(prompts) < len(temperatures) or not temperatures:
        raise ValueError(f"{len(prompts)} prompts cannot be shared among {len(temperatures)} temperatures")
    generator = torch.Generator(target.device).manual_seed(seed)
    examples: list[Example] = []
    for share, temperature in enumerate(temperatures):
        part = prompts[share :: len(temperatures)]
        options = {"max_new_tokens": max_new_tokens, "generator": generator, "progress": progress}
        examples += answer(target, cast(Sequence[Sequence[int]], part), temperature, **options)
    taught = teach(
        drafter, examples, target=target, loss=loss, top=top, epochs=epochs, batch_size=batch_size,
        learning_rate=learning_rate, seed=seed, output_dir=output_dir, progress=progress,
    )  # fmt: skip
    return taught.to(target.dtype)


def _check_loss(loss: str) -> None:
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}: use one of {', '.join(LOSSES)}")


def teach(
    drafter: Any,
    examples: Sequence[Example] | Sequence[TeachingBatch],
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
    """Train a drafter on examples, in place, in bfloat16 with float32 weights, which it keeps; return it in eval mode.

    The target's opinion is taken once, before training (or was taken before, where `examples` are batches made by
    `teaching_batches`); the loss `ce` on a plain language model needs none. With an `output_dir`, every epoch leaves a
    checkpoint and a second call continues from the last one.
    Raises ValueError for an unknown loss, no examples, or a loss or drafter that needs a target when there is none.
    """
    _check_loss(loss)
    if not examples:
        raise ValueError("there are no examples: give some prompts with answers")
    batches = [item for item in examples if isinstance(item, TeachingBatch)]
    if not batches:
        layers = getattr(drafter, "layers", ())  # hidden states of the target that it reads
        asked = target if loss != "ce" or layers else None
        if asked is None and (loss != "ce" or layers):
            raise ValueError(f"a loss {loss!r} on a {type(drafter).__name__} needs the target: pass target=…")
        given, device = cast(Sequence[Example], examples), next(drafter.parameters()).device
        batches = teaching_batches(given, asked, batch_size=batch_size, top=top, layers=layers, device=device)
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
    trainer = Trainer(model=student, args=arguments, train_dataset=cast(Any, batches), data_collator=_only)
    trainer.remove_callback(PrinterCallback)
    last = get_last_checkpoint(str(folder)) if folder.is_dir() and output_dir is not None else None
    trainer.train(resume_from_checkpoint=last)
    return drafter.eval()


class Student(nn.Module):
    """A drafter with its loss, as `Trainer` wants it (and as distributed wrappers need it: one forward)."""

    def __init__(self, drafter: Any, loss: str) -> None:
        super().__init__()
        self.drafter, self.loss = drafter, loss

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the weights with tied ones written twice: a checkpoint of safetensors holds no shared memory."""
        seen: set[int] = set()
        weights = super().state_dict(*args, **kwargs)
        for name, weight in weights.items():
            weights[name] = weight.clone() if weight.data_ptr() in seen else weight
            seen.add(weight.data_ptr())
        return weights

    def forward(self, batch: TeachingBatch) -> dict[str, Tensor]:
        """Return the mean loss in nats over the scored positions of a batch."""
        lag = 1 + int(torch.randint(0, STALEST, ()))
        logits, kept = known_logits(self.drafter, draft_states(self.drafter, batch, lag=lag))
        if self.loss == "ce":
            wanted, temperature = batch.targets[:, None], torch.ones_like(batch.temperature)
            log_q = draft_log_probs(logits, kept, wanted, temperature)[:, 0]
            known = log_q > -torch.inf  # a token outside the reduced head teaches nothing
            return {"loss": -log_q[known].mean()}
        temperature = torch.where(batch.temperature > 0, batch.temperature, 1.0)
        assert batch.top_ids is not None
        assert batch.top_log_probs is not None
        log_q = draft_log_probs(logits, kept, batch.top_ids, temperature)
        return {"loss": divergence(self.loss, batch.top_log_probs, log_q).mean()}


def _only(batches: list[TeachingBatch]) -> dict[str, TeachingBatch]:
    return {"batch": batches[0]}
