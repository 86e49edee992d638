"""SELM on trl's DPOTrainer: one joint forward pass for chosen, rejected and third responses (arXiv:2405.19332)."""

from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoProcessor
from trl.data_utils import common_prefix_length, is_conversational

from lib.preference.losses import dpo_loss
from lib.preference.trainer import TokenDPOTrainer
from lib.selm.collator import DataCollatorForTriples, joint_batch, split_third
from lib.selm.configuration import SELMConfig
from lib.selm.objective import optimism_term

NO_THIRD = "the batch has no third response: pass processing_class, and no collator but DataCollatorForTriples"


class SELMTrainer(TokenDPOTrainer):
    """DPO with the optimism term of Eq. (4.2), on data with a third response beside chosen and rejected.

    Data: token ids (`prompt_ids`, `chosen_ids`, `rejected_ids` and `response_ids`, or the columns that
    `args.optimism` chooses from), or text as trl takes it with a `response` beside `chosen` and `rejected`. The
    reference of a PEFT policy is its adapter before training, or the model below where a `peft_config` is given. It
    logs `logps/response`, `logps/ref_response` and `rewards/response` beside trl's metrics; in evaluation on sampled
    responses also `kl`, the estimate of KL(π_ref || π) that they give.
    """

    _tag_names = ["trl", "selm"]
    _name = "SELM"
    _paper = {
        "title": "Self-Exploring Language Models: Active Preference Elicitation for Online Alignment",
        "id": "2405.19332",
    }
    args: SELMConfig
    model: Any

    def __init__(self, model: Any, ref_model: Any = None, args: Any = None, **options: Any) -> None:
        if not isinstance(args, SELMConfig):
            raise TypeError("SELMTrainer needs args of SELMConfig: it holds alpha and optimism")
        if options.get("processing_class") is None:
            options["processing_class"] = _processing_of(model, args)
        tokenizer = getattr(options["processing_class"], "tokenizer", options["processing_class"])
        if options.get("data_collator") is None:
            options["data_collator"] = DataCollatorForTriples(
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
                max_length=args.max_length,
                truncation_mode=args.truncation_mode,
                pad_to_multiple_of=args.pad_to_multiple_of,  # type: ignore[arg-type]
                share=args.world_size == 1,
            )
        super().__init__(model, ref_model=ref_model, args=args, share_prompts=args.share_prompts, **options)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        assert self._signature_columns is not None
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, "response_ids", "ref_response_logps"]))

    def _with_ids(self, dataset, processing_class, args, dataset_name):
        given = dataset.column_names or []
        prepared = super()._with_ids(dataset, processing_class, args, dataset_name)
        columns = prepared.column_names or []
        if "response_ids" in columns or (args.alpha == 0 and f"{args.optimism}_ids" not in columns):
            return prepared
        if f"{args.optimism}_ids" in columns:
            return prepared.rename_column(f"{args.optimism}_ids", "response_ids")
        if "response" not in columns:
            raise ValueError(
                f"the {dataset_name} data has no third response for optimism={args.optimism!r}: add response_ids or "
                f"{args.optimism}_ids (token ids), or a column response (text)"
            )
        if "prompt" not in given:
            raise ValueError(
                "a text response needs a column prompt: split the prompt off chosen, rejected and response"
            )
        return prepared.map(self._tokenize_response, fn_kwargs={"tokenizer": processing_class})

    def _tokenize_response(self, example: Mapping[str, Any], tokenizer: Any) -> dict[str, list[int]]:
        """Return ids of the third response and of the pair, which all begin where its tokens leave the prompt's."""
        if is_conversational({"prompt": example["prompt"]}):
            turns = example["prompt"] + example["response"]
            options = {"tools": example.get("tools"), **(example.get("chat_template_kwargs") or {})}
            ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, **options)["input_ids"]
        else:  # trl ends chosen and rejected so, too
            text = example["prompt"] + example["response"].removesuffix(tokenizer.eos_token) + tokenizer.eos_token
            ids = tokenizer(text).input_ids
        start = common_prefix_length(example["prompt_ids"], ids)
        moved = example["prompt_ids"][start:]
        pair = {name: moved + example[name] for name in ("chosen_ids", "rejected_ids")}
        return {"prompt_ids": ids[:start], **pair, "response_ids": ids[start:]}

    def compute_ref_log_probs(self, model, inputs):
        """Return reference log-probabilities of chosen and rejected, as in trl; third responses are left out."""
        return super().compute_ref_log_probs(model, split_third(inputs)[0])

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        dataset = super()._precompute_ref_logps(dataset, name, batch_size)
        if "response_ids" not in dataset.column_names or not isinstance(self.data_collator, DataCollatorForTriples):
            return dataset
        columns = dataset.select_columns(["prompt_ids", "response_ids"])
        loader = DataLoader(columns, batch_size=batch_size, collate_fn=self.data_collator.responses)  # type: ignore[arg-type]
        model = self._precompute_engine or self.ref_model or self.model
        values: list[Tensor] = []
        for batch in self.accelerator.prepare(loader):
            log_probs = torch.cat(super().compute_ref_log_probs(model, batch))
            values.append(self.accelerator.gather_for_metrics(log_probs))  # type: ignore[arg-type]
        return dataset.add_column("ref_response_logps", torch.cat(values).tolist())

    def _compute_loss(self, model, inputs, return_outputs):
        pair, third = split_third(inputs)
        if self.args.alpha > 0 and self.model.training and "response_rows" not in third:
            raise ValueError(NO_THIRD)
        smoothed = self.label_smoothing > 0 and "sigmoid" in self.loss_types
        wanted = bool(third) and (self.args.alpha > 0 or not self.model.training)
        if not (wanted or smoothed):
            return super()._compute_loss(model, pair, return_outputs)
        third = third if wanted else {}
        reference = self._reference(pair, third)
        size = len(pair["input_ids"]) // 2
        pair["ref_chosen_logps"], pair["ref_rejected_logps"] = reference[:size], reference[size : 2 * size]
        forward = JointForward(self.sharing(model), third, pad_token_id=self._padding())
        with self.reference_given():
            result = super(TokenDPOTrainer, self)._compute_loss(forward, pair, return_outputs)  # packed already
        loss, *outputs = result if return_outputs else (result,)
        if smoothed:
            loss = loss + self._smoothing(forward.log_probs, reference, size)
        if wanted:
            rows = third["response_rows"]
            ref_response = third["ref_response_logps"] if self.precompute_ref_logps else reference[rows]
            loss = loss + self._optimism(forward.log_probs[rows], ref_response)
        return (loss, *outputs) if return_outputs else loss

    def _padding(self) -> int:
        return int(self._tokenizer.pad_token_id)  # type: ignore[arg-type]

    def _reference(self, pair: dict[str, Any], third: dict[str, Tensor]) -> Tensor:
        """Return log π_ref of the joint rows in one pass, or of the pair as it was computed before training."""
        if self.precompute_ref_logps:
            return torch.cat([pair["ref_chosen_logps"], pair["ref_rejected_logps"]])
        batch = joint_batch(pair, third, self._padding())
        return torch.cat(self.compute_ref_log_probs(self.ref_model or self.model, batch))

    def _smoothing(self, log_probs: Tensor, reference: Tensor, size: int) -> Tensor:
        """Return what label smoothing adds to the sigmoid loss, which trl 1.16 leaves out."""
        ratios = (log_probs - reference[: len(log_probs)])[: 2 * size]
        margin = ratios[:size] - ratios[size:]
        weight = sum(w for kind, w in zip(self.loss_types, self.loss_weights, strict=True) if kind == "sigmoid")
        with_labels_flipped = dpo_loss(margin, beta=self.beta, label_smoothing=self.label_smoothing)
        return weight * (with_labels_flipped - dpo_loss(margin, beta=self.beta)).mean()

    def _optimism(self, response: Tensor, ref_response: Tensor) -> Tensor:
        """Return the mean of Eq. (4.2)'s term over the batch; its metrics are logged under trl's manner of names."""
        mode = "train" if self.model.training else "eval"
        term = optimism_term(response, ref_response, alpha=self.args.alpha, beta=self.beta).mean()
        gathered = self.accelerator.gather(torch.stack([response.detach(), ref_response.to(response)], dim=1))
        logged = {
            "logps/response": gathered[:, 0].mean(),
            "logps/ref_response": gathered[:, 1].mean(),
            "rewards/response": self.beta * (gathered[:, 0] - gathered[:, 1]).mean(),
        }
        if mode == "eval" and self.args.optimism == "sampled":
            logged["kl"] = (gathered[:, 1] - gathered[:, 0]).mean()
        for name, value in logged.items():
            self._metrics[mode][name].append(value.item())
        return term


def _processing_of(model: Any, args: SELMConfig) -> Any:
    """Load a model's tokenizer by the model's name, as trl does; raises ValueError where none is to be had."""
    by_name = isinstance(model, str)
    name = model if by_name else model.config.name_or_path
    revision = (args.model_init_kwargs or {}).get("revision") if by_name else None
    try:
        return AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=args.trust_remote_code)
    except (OSError, ValueError):
        raise ValueError(NO_THIRD) from None


class JointForward:
    """Stands in for the model in trl's loss: runs all rows at once and hands back those of the pair.

    One pass a step keeps distributed wrappers (DDP, FSDP) in step and fills the batch better. `log_probs` are those of
    every row [2B + n], summed over response tokens, with their gradient.
    """

    def __init__(self, model: Any, third: dict[str, Tensor], *, pad_token_id: int) -> None:
        self.model, self.third, self.pad_token_id = model, third, pad_token_id
        self.log_probs = torch.empty(0)

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None, **options: Any) -> Any:
        """Return outputs of the pair's rows."""
        if labels is None:  # trl asks for the logits of the pair once more where outputs are to be returned
            return self.model(input_ids=input_ids, attention_mask=attention_mask, **options)
        pair = {"input_ids": input_ids, "attention_mask": attention_mask, "completion_mask": (labels != -100).long()}
        batch = joint_batch(pair, self.third, self.pad_token_id)
        all_labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        outputs = self.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=all_labels, **options
        )
        self.log_probs = outputs.log_probs.sum(dim=1)
        rows, added = input_ids.shape[0], batch["input_ids"].shape[1] - input_ids.shape[1]
        for name, value in list(outputs.items()):
            if isinstance(value, Tensor) and value.ndim >= 2:
                outputs[name] = value[:rows, : value.shape[1] - added]
        return outputs
