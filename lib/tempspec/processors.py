"""What transformers does to the logits before temperature: the penalties of a generation config, and processors given.

They are functions of the tokens so far, so every token of a draft has its own: they are applied to the target along
each path. The drafter does without them, which costs acceptance at most.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LogitsProcessorList

STATEFUL = ("UnbatchedClassifierFreeGuidanceLogitsProcessor", "SynthIDTextWatermarkLogitsProcessor")
WARPERS: dict[str, Any] = {
    "do_sample": False, "num_beams": 1, "guidance_scale": None, "encoder_repetition_penalty": None,
    "encoder_no_repeat_ngram_size": None, "renormalize_logits": False,
}  # fmt: skip
REFUSED = ("guidance_scale", "encoder_repetition_penalty", "encoder_no_repeat_ngram_size")


def processors_of(
    target: Any, given: LogitsProcessorList | None, *, start: int, max_new_tokens: int, eos: Int[Tensor, " ends"]
) -> LogitsProcessorList:
    """Return what `generate` would apply to a prompt of `start` tokens, before temperature: a config's, then the given.

    Temperature and truncation are the decoder's own. Raises ValueError for those that keep a state of their own or need
    a second pass of the model.
    """
    config = copy.deepcopy(target.generation_config)
    asked = [name for name in REFUSED if getattr(config, name, None) not in (None, 0, 1, 1.0)]
    asked += [type(each).__name__ for each in given or () if type(each).__name__ in STATEFUL]
    if asked:
        raise ValueError(f"{', '.join(asked)} cannot be applied to drafts: leave it out, or decode with generate")
    for name, value in WARPERS.items():
        setattr(config, name, value)
    config.eos_token_id = eos.tolist() or None
    config.max_length, config.max_new_tokens = start + max_new_tokens, max_new_tokens
    target._prepare_special_tokens(config, True, device=eos.device)
    return target._get_logits_processor(
        config, input_ids_seq_length=start, logits_processor=LogitsProcessorList(given or ()), device=eos.device
    )


def along_paths(
    processors: Sequence[LogitsProcessorList],
    logits: Float[Tensor, "batch drafted+1 vocab"],
    texts: Sequence[Int[Tensor, " length"]],
    tokens: Int[Tensor, "batch drafted"],
    parents: Int[Tensor, "batch drafted"],
    valid: Bool[Tensor, "batch drafted"],
) -> Float[Tensor, "batch drafted+1 vocab"]:
    """Apply each row's processors at the root and at every drafted token, after the tokens on the way to it."""
    logits = logits.clone()
    for row, text in enumerate(texts):
        ways: list[Tensor] = [text]  # of each slot: all tokens up to it
        for node in range(tokens.shape[1]):
            ways.append(torch.cat([ways[int(parents[row, node])], tokens[row, node : node + 1]]))
        for slot, way in enumerate(ways):
            if slot == 0 or bool(valid[row, slot - 1]):
                logits[row, slot] = processors[row](way[None], logits[row, slot][None])[0]
    return logits
