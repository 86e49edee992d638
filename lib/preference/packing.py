"""Sequences that share a prompt in one row: the prompt is encoded once for all of its responses.

A row of a packed batch is prompt tokens 1 … n-1, then for each response the prompt's last token again and the response:
that token predicts the response's first one. A response sees the prompt and itself (a mask of [length, length] a row),
at the positions it would have on its own, so the numbers are those of separate rows.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lib.core.generation import has_window


@dataclass(frozen=True)
class Packed:
    """`inputs` for the model ([rows, length]; mask [rows, 1, length, length]) and where each scored token went."""

    inputs: dict[str, Tensor]
    scored: Tensor  # [sequences, tokens - 1], bool: positions whose next token is scored
    rows: Tensor  # row of each scored position, in order
    columns: Tensor

    def unpack(self, values: Tensor) -> Tensor:
        """Values [rows, length - 1] of the packed batch as [sequences, tokens - 1], zero where nothing is scored."""
        return values.new_zeros(self.scored.shape).masked_scatter(self.scored, values[self.rows, self.columns])


def pack(batch: dict[str, Tensor], pad_token_id: int) -> Packed:
    """Pack right-padded sequences: input_ids, attention_mask and completion_mask, each [sequences, tokens]."""
    lengths = batch["attention_mask"].sum(1).tolist()
    starts = [max(1, length - said) for length, said in zip(lengths, batch["completion_mask"].sum(1), strict=True)]
    ids = [row[:length] for row, length in zip(batch["input_ids"].tolist(), lengths, strict=True)]
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, (row, start) in enumerate(zip(ids, starts, strict=True)):
        groups.setdefault(tuple(row[:start]), []).append(index)
    laid = [lay_out([ids[i][len(prompt) - 1 :] for i in members], prompt) for prompt, members in groups.items()]
    device = batch["input_ids"].device
    places = {
        index: (row, begin)
        for row, (members, (_, _, begins)) in enumerate(zip(groups.values(), laid, strict=True))
        for index, begin in zip(members, begins, strict=True)
    }
    scored = batch["completion_mask"][:, 1:].bool()
    counts = scored.sum(1).tolist()
    rows = [places[i][0] for i, count in enumerate(counts) for _ in range(count)]
    columns = [places[i][1] + j for i, count in enumerate(counts) for j in range(count)]
    return Packed(
        {name: value.to(device) for name, value in stacked(laid, pad_token_id).items()},
        scored, torch.tensor(rows, device=device), torch.tensor(columns, device=device),
    )  # fmt: skip


def lay_out(segments: list[list[int]], prompt: tuple[int, ...]) -> tuple[list[int], list[int], list[int]]:
    """Token ids of a row, the segment of each (0: the prompt), and where the segments begin."""
    ids, owners, begins = list(prompt[:-1]), [0] * (len(prompt) - 1), []
    for number, segment in enumerate(segments, start=1):
        begins.append(len(ids))
        ids += segment
        owners += [number] * len(segment)
    return ids, owners, begins


def stacked(laid: list[tuple[list[int], list[int], list[int]]], pad_token_id: int) -> dict[str, Tensor]:
    """Return rows as a batch: ids, mask [rows, 1, length, length], positions, and labels of the responses' tokens."""
    longest = max(len(ids) for ids, _, _ in laid)
    input_ids = torch.full((len(laid), longest), pad_token_id)
    owners = torch.full((len(laid), longest), -1)
    positions = torch.zeros(len(laid), longest, dtype=torch.long)
    labels = torch.full((len(laid), longest), -100)
    for row, (ids, owner, begins) in enumerate(laid):
        input_ids[row, : len(ids)], owners[row, : len(ids)] = torch.tensor(ids), torch.tensor(owner)
        prompt = begins[0]
        positions[row, :prompt] = torch.arange(prompt)
        for begin, end in zip(begins, [*begins[1:], len(ids)], strict=True):
            positions[row, begin:end] = torch.arange(prompt, prompt + end - begin)
            labels[row, begin + 1 : end] = input_ids[row, begin + 1 : end]
    seen = (owners[:, None, :] == 0) | (owners[:, None, :] == owners[:, :, None])
    mask = seen & torch.ones(longest, longest, dtype=torch.bool).tril()
    return {"input_ids": input_ids, "attention_mask": mask[:, None], "position_ids": positions, "labels": labels}


class SharedPrompts:
    """Stands in for a model with trl's fused head: takes separate sequences, runs them packed, gives theirs back."""

    def __init__(self, model: Any, pad_token_id: int) -> None:
        self.model, self.pad_token_id = model, pad_token_id

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None, **options: Any) -> Any:
        """trl's outputs [sequences, tokens - 1]; without labels nothing is packed, since logits are wanted."""
        if labels is None:
            return self.model(input_ids=input_ids, attention_mask=attention_mask, **options)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "completion_mask": (labels != -100).long()}
        packed = pack(batch, self.pad_token_id)
        outputs = self.model(**packed.inputs, **options)
        shape = (packed.inputs["labels"].shape[0], packed.inputs["labels"].shape[1] - 1)
        for name, value in list(outputs.items()):
            if isinstance(value, Tensor) and value.shape == shape:
                outputs[name] = packed.unpack(value)
        return outputs


def check_packing(model: Any) -> None:
    """Raise ValueError where a model cannot take such a mask: its attention must be full, by sdpa or eager."""
    config = model.config.get_text_config()
    stateful = getattr(model, "_is_stateful", False)
    if has_window(config) or stateful or config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"{config.model_type} with {config._attn_implementation} attention cannot share prompts: that needs full "
            "attention in every layer by sdpa or eager: set share_prompts=False, or load it with one of them"
        )
