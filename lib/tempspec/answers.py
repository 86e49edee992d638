"""What a drafter is taught from: the target's answers at a temperature, and what it thought at each token of them.

arXiv:2410.10141: the target answers training prompts at temperature T_KD; the drafter learns from the answers alone.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lib.core.generation import Warping
from lib.core.scoring import ScoredBatch, by_length, decoder_of, head_logits, padded, scored_batch, scored_states
from lib.tempspec.decoder import SpeculativeDecoder
from lib.tempspec.metrics import acceptance
from lib.tempspec.modeling import known_logits


@dataclass(frozen=True)
class Example:
    """A prompt and an answer: `tokens` of both, of which those from `start` on are the answer, and its temperature."""

    tokens: Int[Tensor, " length"]
    start: int
    temperature: float = 1.0


@dataclass(frozen=True)
class TeachingBatch(ScoredBatch):
    """Examples whose answers are scored: per scored position also the temperature, and what the target thinks.

    That is its `top_ids` with their log-probabilities at that temperature; `features` are hidden states of every
    position, where asked for.
    """

    temperature: Float[Tensor, " scored"]
    top_ids: Int[Tensor, "scored top"] | None = None
    top_log_probs: Float[Tensor, "scored top"] | None = None
    features: Float[Tensor, "rows length width"] | None = None


def answer(
    target: Any,
    prompts: Sequence[Sequence[int]],
    temperature: float,
    *,
    max_new_tokens: int = 64,
    batch_size: int = 96,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> list[Example]:
    """Let the target answer prompts (token ids) at one temperature, in batches of similar length; order is kept.

    The end-of-sequence token belongs to an answer, nothing after it does.
    """
    decoder = SpeculativeDecoder(target, None, temperature=temperature)
    answered: dict[int, Example] = {}
    batches = by_length([len(prompt) for prompt in prompts], rows=batch_size)
    for chosen in tqdm(batches, desc=f"answers at T = {temperature:g}", unit="batch", disable=not progress):
        ids, present = padded([prompts[index] for index in chosen], side="left", device=target.device)
        output = decoder.generate(ids, present, max_new_tokens, generator)
        for index, row, new in zip(chosen, output.sequences.cpu(), output.new_tokens.tolist(), strict=True):
            start = len(prompts[index])
            tokens = row[ids.shape[1] - start : ids.shape[1] + new].clone()
            answered[index] = Example(tokens, start, float(temperature))
    return [answered[index] for index in range(len(prompts))]


def collate(examples: Sequence[Example], device: Any = None) -> TeachingBatch:
    """Pad examples into a batch without the target's opinion."""
    batch = scored_batch([e.tokens.tolist() for e in examples], [e.start for e in examples], device=device)
    temperature = torch.tensor([example.temperature for example in examples], device=device)
    return TeachingBatch(batch.ids, batch.present, batch.scored, temperature[batch.owners])


@torch.no_grad()
def observe(target: Any, examples: Sequence[Example], *, top: int = 32, layers: tuple[int, ...] = ()) -> TeachingBatch:
    """Return a batch of examples with what the target thinks of it: its top log-probabilities, and features.

    The log-probabilities are those at the answer's own temperature; at T = 0 all probability lies on the first.
    """
    batch = collate(examples, target.device)
    output = decoder_of(target)(batch.ids, use_cache=False, output_hidden_states=bool(layers))
    logits = head_logits(target, output.last_hidden_state[batch.scored])
    top_ids = logits.topk(min(top, logits.shape[-1]), dim=-1).indices
    return replace(
        batch,
        top_ids=top_ids,
        top_log_probs=log_probs_at(logits, batch.temperature).gather(-1, top_ids),
        features=torch.cat([output.hidden_states[i] for i in layers], dim=-1) if layers else None,
    )


def teaching_batches(
    examples: Sequence[Example], target: Any, *, batch_size: int = 16, top: int = 32, layers: tuple[int, ...] = (),
    device: Any = None,
) -> list[TeachingBatch]:  # fmt: skip
    """Batch examples of similar length, with the target's opinion and on its device where there is a target."""
    groups = [[examples[i] for i in chosen] for chosen in by_length([len(e.tokens) for e in examples], rows=batch_size)]
    if target is None:
        return [collate(group, device) for group in groups]
    watched = tqdm(groups, desc="the target's opinion", unit="batch", mininterval=5, leave=False)
    return [observe(target, group, top=top, layers=layers) for group in watched]


def log_probs_at(
    logits: Float[Tensor, "tokens vocab"], temperature: Float[Tensor, " tokens"]
) -> Float[Tensor, "tokens vocab"]:
    """Return log-probabilities of each row at its own temperature; at 0 they are those of the largest logit alone."""
    values = (logits / torch.where(temperature > 0, temperature, 1.0)[:, None]).log_softmax(-1)
    cold = temperature == 0
    if bool(cold.any()):
        values[cold] = Warping(0).probs(logits[cold]).log()
    return values


def draft_states(drafter: Any, batch: TeachingBatch, *, lag: int = 1) -> Float[Tensor, "scored width"]:
    """Return a drafter's last hidden states at the scored positions, by one pass.

    One that reads `layers` of the target is given the batch's features, `lag` tokens old.
    """
    if not getattr(drafter, "layers", ()):
        return scored_states(drafter, batch)
    assert batch.features is not None
    return drafter(batch.ids, batch.features, lag=lag)[batch.scored]


@torch.inference_mode()
def teacher_forced_acceptance(
    target: Any,
    drafters: Mapping[Hashable, Any],
    examples: Sequence[Example],
    temperature: float,
    *,
    batch_size: int = 8,
) -> dict[Hashable, Float[Tensor, " examples"]]:
    """Return each drafter's mean acceptance over the answer tokens of each example, the target running once for all.

    Acceptance is exact: the sum over the vocabulary of min(p, q). Drafters are causal language models, or networks that
    read one set of `layers` of the target. The answers should be the target's own at that temperature: then the mean is
    the acceptance of a block's first token.
    """
    warping, layers = Warping(temperature), next((d.layers for d in drafters.values() if hasattr(d, "layers")), ())
    means: dict[Hashable, list[Tensor]] = {name: [] for name in drafters}
    for place in range(0, len(examples), batch_size):
        batch = collate(examples[place : place + batch_size], target.device)
        output = decoder_of(target)(batch.ids, use_cache=False, output_hidden_states=bool(layers))
        if layers:
            batch = replace(batch, features=torch.cat([output.hidden_states[i] for i in layers], dim=-1))
        p = warping.probs(head_logits(target, output.last_hidden_state[batch.scored]))
        for name, drafter in drafters.items():
            logits, kept = known_logits(drafter, draft_states(drafter, batch))
            alpha = acceptance(p, warping.probs(logits), kept)
            total = alpha.new_zeros(len(batch.ids)).index_add(0, batch.owners, alpha)
            means[name].append((total / batch.scored.sum(1)).cpu())
    return {name: torch.cat(parts) for name, parts in means.items()}
