"""What a call of `generate` is held to: its prompts, and what transformers does to the logits before temperature.

The penalties of a generation config, and processors given, are functions of the tokens so far, so every token of a
draft has its own: they are applied to the target along each path. The drafter does without them.
"""

import copy
from collections.abc import Sequence
from typing import Any, cast

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
    tokens: Int[Tensor, "batch drafted"],
    parents: Int[Tensor, "batch drafted"],
    valid: Bool[Tensor, "batch drafted"],
    logits: Float[Tensor, "batch drafted+1 vocab"],
    texts: Sequence[Tensor],
    processors: Sequence[LogitsProcessorList],
) -> Float[Tensor, "batch drafted+1 vocab"]:
    """Apply each row's processors at the root and at every drafted token, after the tokens on the way to it."""
    logits = logits.clone()
    for row, text in enumerate(texts):
        ways: list[Tensor] = [text]  # of each slot: all tokens up to it
        for node in range(tokens.shape[1]):
            ways.append(torch.cat([ways[int(parents[row, node])], tokens[row, node : node + 1]]))
        for slot, way in enumerate(ways):
            if slot == 0 or bool(valid[row, slot - 1]):
                logits[row, slot] = processors[row](cast(Any, way[None]), cast(Any, logits[row, slot][None]))[0]
    return logits


def special_tokens(target: Any, eos: int | list[int] | None, device: torch.device) -> tuple[Tensor, int]:
    """Return end-of-sequence ids as a tensor (maybe empty), and the id that pads ended rows."""
    config = target.generation_config
    eos = config.eos_token_id if eos is None else eos
    ids = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    pad = config.pad_token_id if config.pad_token_id is not None else (ids or [0])[0]
    return torch.tensor(ids, dtype=torch.long, device=device), int(pad)


def check_prompts(input_ids: Tensor, valid: Tensor, max_new_tokens: int, streamer: Any) -> None:
    """Refuse what cannot be continued."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: ask for at least 1")
    if not input_ids.shape[1] or not bool(valid[:, -1].all()):
        raise ValueError("a prompt is empty or padded on the right: pad on the left (tokenizer.padding_side = 'left')")
    if streamer is not None and len(input_ids) != 1:
        raise ValueError("a streamer can follow one prompt only")


def check_limits(models: Sequence[Any], length: int) -> None:
    """Refuse more tokens than a model has positions for; models that count none have no limit."""
    for role, model in zip(("target", "drafter"), models, strict=True):
        config = getattr(model, "config", None)
        most = None if config is None else getattr(config.get_text_config(), "max_position_embeddings", None)
        if most is not None and length > most:
            raise ValueError(f"prompt and new tokens make {length}, the {role} knows {most}: ask for fewer")
