"""What a policy's forward pass says of given responses: log-probabilities, divergences, features."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from tqdm import tqdm

from lib.core.scoring import ScoredBatch, by_length, head_logits, log_probs, scored_batch, scored_states

Ids = Sequence[int]


@torch.no_grad()
def response_log_probs(
    policy: Any, prompts: Sequence[Ids], responses: Sequence[Ids], *, batch_size: int = 16, progress: bool = False
) -> Float[torch.Tensor, " rows"]:
    """Return log π(y|x) of each response in nats, summed over its tokens, by one forward pass."""
    summed = torch.zeros(len(prompts), dtype=torch.float64)
    for rows, batch in _batches(policy, prompts, responses, batch_size, progress, "log-probabilities"):
        summed[rows] = batch.sums(log_probs(policy, scored_states(policy, batch), batch.targets))
    return summed


def pair_log_odds(
    policy: Any, rows: Iterable[Mapping[str, Any]], *, batch_size: int = 16
) -> Float[torch.Tensor, " pairs"]:
    """Return log π(y_w|x) - log π(y_l|x) of pairs {prompt_ids, chosen_ids, rejected_ids}."""
    rows = list(rows)
    prompts = [row["prompt_ids"] for row in rows]
    chosen, rejected = (
        response_log_probs(policy, prompts, [row[side] for row in rows], batch_size=batch_size)
        for side in ("chosen_ids", "rejected_ids")
    )
    return chosen - rejected


@torch.no_grad()
def reference_divergence(
    policy: Any,
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    *,
    reference: Any = None,
    batch_size: int = 16,
    progress: bool = False,
) -> Float[torch.Tensor, " rows"]:
    """Return KL(π_ref || π) of each sequence in nats, from responses that the reference drew.

    The chain rule makes it a sum over tokens of the divergence of next-token laws, of which each sampled response gives
    an unbiased estimate with far less noise than log π_ref(y) - log π(y). Without a `reference` it is the policy below
    its adapters; raises ValueError where a policy has neither.
    """
    if reference is None and not hasattr(policy, "disable_adapter"):
        raise ValueError("a plain policy has no adapters to take off: pass its reference model")
    divergence = torch.zeros(len(prompts), dtype=torch.float64)
    for rows, batch in _batches(policy, prompts, responses, batch_size, progress, "divergence"):
        with policy.disable_adapter() if reference is None else nullcontext():
            of = _next_laws(policy if reference is None else reference, batch)
        other = _next_laws(policy, batch)
        divergence[rows] = batch.sums((of.exp() * (of - other)).sum(-1))
    return divergence


def _next_laws(model: Any, batch: ScoredBatch) -> Float[torch.Tensor, "scored vocab"]:
    return head_logits(model, scored_states(model, batch)).log_softmax(-1)


@torch.inference_mode()
def response_features(
    policy: Any, prompts: Sequence[Ids], responses: Sequence[Ids], *, batch_size: int = 32, progress: bool = False
) -> Float[torch.Tensor, "rows width"]:
    """Return the mean of the last hidden states over the positions that predict the response, float32 on the CPU."""
    features = torch.zeros(len(prompts), policy.config.get_text_config().hidden_size)
    for rows, batch in _batches(policy, prompts, responses, batch_size, progress, "features"):
        states = scored_states(policy, batch).float()
        summed = states.new_zeros(len(rows), states.shape[1]).index_add(0, batch.owners, states)
        features[rows] = (summed / batch.scored.sum(1, keepdim=True)).cpu()
    return features


def principal(
    features: Float[torch.Tensor, "prompts k width"], *, width: int, train: int
) -> Float[torch.Tensor, "prompts k {width}"]:
    """Return the first principal components of features centred within each prompt, at unit variance.

    They are fitted on the first `train` prompts; what all responses to a prompt share cannot tell them apart.
    """
    centred = (features - features.mean(1, keepdim=True)).double()
    fitted = centred[:train].flatten(0, 1)
    _, scale, directions = torch.linalg.svd(fitted, full_matrices=False)
    scale = scale[:width] / len(fitted) ** 0.5
    return (centred @ directions[:width].T) / scale


def _batches(
    policy: Any, prompts: Sequence[Ids], responses: Sequence[Ids], size: int, progress: bool, label: str
) -> Iterator[tuple[list[int], ScoredBatch]]:
    """Yield rows of similar length with their batch; raises ValueError where a prompt has no (or an empty) response."""
    if len(prompts) != len(responses) or not all(len(r) for r in responses):
        raise ValueError("give each prompt one response of at least one token")
    device = next(policy.parameters()).device
    sequences = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    batches = by_length(list(map(len, sequences)), rows=size)
    for rows in tqdm(batches, desc=label, disable=not progress, mininterval=1.0):
        yield rows, scored_batch([sequences[i] for i in rows], [len(prompts[i]) for i in rows], device=device)
