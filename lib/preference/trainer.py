"""Direct preference optimisation by trl, on token ids: what the policy read and said is what it is trained on.

Text would be tokenised again, put into a template with an end token that a cut-off response never had, and so become
off-policy by a few tokens. The DPO loss is Eq. (7) of arXiv:2305.18290.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import torch
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from lib.preference.packing import SharedPrompts, check_packing

IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
RESPONSES = ("chosen_ids", "rejected_ids", "response_ids")


class TokenDPOTrainer(DPOTrainer):
    """trl's DPOTrainer that takes data sets of token ids (prompt_ids, chosen_ids, rejected_ids) as they are.

    A policy that is a PEFT model with an adapter of its own is its own reference: trl keeps a copy of the adapter as it
    was before training. A plain model needs a `ref_model` (trl would read one from disk). `share_prompts` encodes a
    prompt once for both responses (the same numbers in less time), for models with full attention.
    """

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: DPOConfig | None = None,
        *,
        share_prompts: bool = False,
        **options: Any,
    ) -> None:
        self.share_prompts = share_prompts
        by_name = isinstance(model, str)
        if share_prompts and not by_name:
            check_packing(model)
        precomputed = args is not None and args.precompute_ref_log_probs
        plain = not by_name and not hasattr(model, "peft_config")
        if plain and ref_model is None and not precomputed and options.get("peft_config") is None:
            raise ValueError(
                "a plain policy needs its reference: pass ref_model (a deepcopy made before training), adapters "
                "(with_lora), or precompute_ref_log_probs=True"
            )
        forget_reference(model)
        super().__init__(model, ref_model=ref_model, args=args, **options)

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):  # type: ignore[override]
        dataset, limit = self._with_ids(dataset, processing_class, args, dataset_name), args.max_length
        return dataset if limit is None else dataset.map(cut_prompt, fn_kwargs={"limit": limit})

    def _with_ids(self, dataset, processing_class, args, dataset_name):
        """Return token ids as they are, and text as trl tokenises it, with no row dropped for a long prompt."""
        if set(IDS) <= set(dataset.column_names or []):
            return dataset
        unlimited = copy.copy(args)
        unlimited.max_length = None
        return super()._prepare_dataset(dataset, processing_class, unlimited, dataset_name)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Return trl's loss, with the vocabulary projected at response positions only."""
        with response_positions_only():
            return super().compute_loss(*args, **kwargs)

    def compute_ref_log_probs(self, model, inputs):
        """Return trl's reference log-probabilities, with the vocabulary projected at response positions only."""
        with response_positions_only():
            return super().compute_ref_log_probs(self.sharing(model), inputs)

    def sharing(self, model: Any) -> Any:
        """Return the model, or where prompts are shared what runs it on packed rows."""
        return SharedPrompts(model, int(self._tokenizer.pad_token_id)) if self.share_prompts else model  # type: ignore[arg-type]

    def _compute_loss(self, model, inputs, return_outputs):
        if not self.share_prompts:
            return super()._compute_loss(model, inputs, return_outputs)
        if not self.precompute_ref_logps:
            chosen, rejected = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
            inputs = {**inputs, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        with self.reference_given():
            return super()._compute_loss(self.sharing(model), inputs, return_outputs)

    @contextmanager
    def reference_given(self) -> Iterator[None]:
        """Let trl take the reference's log-probabilities from the batch."""
        before, self.precompute_ref_logps = self.precompute_ref_logps, True
        try:
            yield
        finally:
            self.precompute_ref_logps = before


def cut_prompt(row: Mapping[str, Any], limit: int) -> dict[str, list[int]]:
    """Cut a prompt's beginning where it and its longest response pass the limit, down to half of the limit at most.

    So the prompt is cut before the responses are, as in the alignment recipes (512 of 1,024 tokens); what a response
    still has too much is cut from its end. Raises ValueError for a limit that leaves no room for a response.
    """
    if limit < 2:
        raise ValueError(f"max_length = {limit} leaves no token of a response: raise it")
    longest = max(len(row[name]) for name in RESPONSES if name in row)
    return {"prompt_ids": row["prompt_ids"][-max(limit - longest, limit // 2) :]}


@contextmanager
def response_positions_only() -> Iterator[None]:
    """Let trl's fused head skip the prompt's positions on a CPU too, as it does where Triton runs.

    A small model spends about half of a step on its vocabulary; the numbers are the same.
    """
    from trl.trainer import utils

    before = utils._use_triton
    utils._use_triton = lambda device: device.type == "cpu" or before(device)
    try:
        yield
    finally:
        utils._use_triton = before


def forget_reference(policy: Any) -> None:
    """Remove the copy of the adapter that the last training kept as its reference: the next begins from the policy."""
    if "ref" in getattr(policy, "peft_config", {}):
        policy.delete_adapter("ref")
        policy.set_adapter("default")


def config(output_dir: Path | str, cls: type[DPOConfig] = DPOConfig, **settings: Any) -> DPOConfig:
    """Return a training configuration with quiet defaults: nothing reported or saved on the way, metrics of every step.

    Any field of `cls` can be set; `bf16`, `gradient_checkpointing` and the device follow the machine.
    """
    cuda = torch.cuda.is_available()
    quiet = {
        "report_to": [], "save_strategy": "no", "logging_steps": 1.0, "disable_tqdm": True, "bf16": cuda,
        "gradient_checkpointing": cuda, "use_cpu": not cuda, "dataloader_pin_memory": cuda,
    }  # fmt: skip
    return cls(str(output_dir), **(quiet | settings))


def train(
    policy: Any,
    tokenizer: Any,
    data: datasets.Dataset,
    args: DPOConfig,
    *,
    trainer: type[DPOTrainer] = TokenDPOTrainer,
    ref_model: Any = None,
    progress: bool = True,
    **options: Any,
) -> list[dict[str, float]]:
    """Train a policy in place and return trl's metrics of each logged step.

    The policy ends in evaluation mode, without the copy of its adapter that was the reference. Raises ValueError for an
    adapted policy without an adapter called "default", which is the one that trl trains.
    """
    if (adapters := getattr(policy, "peft_config", None)) and "default" not in adapters:
        raise ValueError(f'trl trains the adapter "default", and this policy has {", ".join(adapters)}: rename it')
    runner = trainer(
        policy, ref_model=ref_model, args=args, train_dataset=data, processing_class=tokenizer,
        callbacks=[StepBar()] if progress else [], **options,
    )  # fmt: skip
    runner.remove_callback(PrinterCallback)
    runner.train()
    policy.eval()
    forget_reference(policy)
    return [row for row in runner.state.log_history if "loss" in row]


class StepBar(TrainerCallback):
    """Bar over optimiser steps with the last loss, which also suits a log file."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Open the bar, in the first process."""
        hidden = not state.is_world_process_zero
        self.bar = tqdm(total=state.max_steps, desc="train", unit="step", mininterval=1.0, disable=hidden)

    def on_step_end(self, args, state, control, **kwargs):
        """Move the bar."""
        self.bar.update(1)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show the last loss."""
        if logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}", refresh=False)

    def on_train_end(self, args, state, control, **kwargs):
        """Close the bar."""
        self.bar.close()
