"""The third response of a prompt, and batches of pairs with it: it costs nothing where it is one of the pair.

trl's batch holds 2B rows, [chosen, rejected]. Third responses that are neither are appended as rows of their own (keys
`response_*`); `response_rows[i]` is the row of the joint batch where example i's third response stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import pad

from lib.preference.pairing import Scored

PARTS = ("input_ids", "attention_mask", "completion_mask")
THIRD = tuple(f"response_{part}" for part in PARTS) + ("response_rows", "ref_response_logps")


@dataclass
class DataCollatorForTriples(DataCollatorForPreference):
    """trl's collator, with the third response of each example where it has one.

    Every one of the three sequences is cut at `max_length`. `share=False` gives every third response its own row, so
    that all processes of a distributed run have batches of one shape.
    """

    share: bool = True

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad examples into a batch."""
        batch = super().torch_call(examples)
        if "response_ids" not in examples[0]:
            return batch
        rows, own = [], []
        for index, example in enumerate(examples):
            if self.share and example["response_ids"] == example["chosen_ids"]:
                rows.append(index)
            elif self.share and example["response_ids"] == example["rejected_ids"]:
                rows.append(len(examples) + index)
            else:
                rows.append(2 * len(examples) + len(own))
                own.append(example)
        if own:
            batch |= {f"response_{name}": value for name, value in self.responses(own).items()}
        if "ref_response_logps" in examples[0]:
            batch["ref_response_logps"] = torch.tensor([example["ref_response_logps"] for example in examples])
        return batch | {"response_rows": torch.tensor(rows)}

    def responses(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return a batch of the third responses alone, under trl's names."""
        ids = [example["prompt_ids"] + example["response_ids"] for example in examples]
        masks = [[0] * len(e["prompt_ids"]) + [1] * len(e["response_ids"]) for e in examples]
        # keep_start drops the end of a response, keep_end the beginning of a prompt, as for the pair.
        limit = self.max_length
        kept = slice(None, limit) if limit is None or self.truncation_mode == "keep_start" else slice(-limit, None)
        cut_ids, cut_masks = ([torch.tensor(row[kept]) for row in rows] for rows in (ids, masks))
        options = {"padding_side": "right", "pad_to_multiple_of": self.pad_to_multiple_of}
        return {
            "input_ids": pad(cut_ids, padding_value=self.pad_token_id, **options),
            "attention_mask": pad([torch.ones_like(i) for i in cut_ids], padding_value=0, **options),
            "completion_mask": pad(cut_masks, padding_value=0, **options),
        }


def split_third(inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return inputs of the pair under trl's keys, and those of the third responses."""
    third = {name: inputs[name] for name in THIRD if name in inputs}
    return {name: value for name, value in inputs.items() if name not in third}, third


def joint_batch(pair: dict[str, Any], third: dict[str, Tensor], pad_token_id: int) -> dict[str, Tensor]:
    """Return pair and own third responses as one batch of [2B + n] rows, padded on the right to one length."""
    if "response_input_ids" not in third:
        return {part: pair[part] for part in PARTS}
    longest = max(pair["input_ids"].shape[1], third["response_input_ids"].shape[1])
    fills = {"input_ids": pad_token_id, "attention_mask": 0, "completion_mask": 0}
    return {
        part: torch.cat(
            [
                nn.functional.pad(rows, (0, longest - rows.shape[1]), value=fills[part])
                for rows in (pair[part], third[f"response_{part}"])
            ]
        )
        for part in PARTS
    }


def third_response(group: Scored) -> dict[str, list[int]]:
    """Return columns `sampled_ids` (the first draw) and, where there is a greedy response, `greedy_ids`; for
    `online(extra=)`.

    Both are among the candidates that were ranked, as in Algorithm 1 of arXiv:2405.19332. Raises ValueError where
    the prompt has no sampled response.
    """
    drawn = group.samples()
    if not drawn:
        raise ValueError("a prompt has no sampled response: sample with k of at least 1")
    columns = {"sampled_ids": list(drawn[0].tokens)}
    return columns if group.greedy is None else columns | {"greedy_ids": list(group.responses[group.greedy].tokens)}
