"""Teacher-forced log-probabilities of responses, and divergences between two policies at what one of them said."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from lib import TenfoldError

Ids = Sequence[int]


def without_adapter(policy: Any) -> Any:
    """Context in which a PEFT policy is the model below its adapters."""
    if not hasattr(policy, "disable_adapter"):
        raise TenfoldError("a plain policy has no adapters to take off: pass its reference model.")
    return policy.disable_adapter()


def response_log_probs(
    policy: Any, prompts: Sequence[Ids], responses: Sequence[Ids], *, batch_size: int = 16, progress: bool = False
) -> Float[Tensor, " rows"]:
    """log π(y|x) of each response in nats, summed over its tokens, by one forward pass."""
    found = torch.zeros(len(prompts), dtype=torch.float64)
    for rows, batch in batches(policy, prompts, responses, batch_size, progress, "log-probabilities"):
        chosen = _logits(policy, batch).log_softmax(-1).gather(-1, batch["targets"][:, None]).squeeze(-1)
        found[rows] = _per_row(chosen, batch)
    return found


def reference_divergence(
    policy: Any,
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    *,
    reference: Any = None,
    batch_size: int = 16,
    progress: bool = False,
) -> Float[Tensor, " rows"]:
    """KL(π_ref || π) of each sequence in nats, from responses that the reference drew.

    The chain rule makes it a sum over tokens of the divergence of next-token laws, of which each sampled response gives
    an unbiased estimate with far less noise than log π_ref(y) - log π(y). Without a `reference` it is the policy below
    its adapters.
    """
    found = torch.zeros(len(prompts), dtype=torch.float64)
    for rows, batch in batches(policy, prompts, responses, batch_size, progress, "divergence"):
        with without_adapter(policy) if reference is None else nullcontext():
            of = _logits(policy if reference is None else reference, batch).log_softmax(-1)
        other = _logits(policy, batch).log_softmax(-1)
        found[rows] = _per_row((of.exp() * (of - other)).sum(-1), batch)
    return found


def batches(
    policy: Any, prompts: Sequence[Ids], responses: Sequence[Ids], size: int, progress: bool, label: str
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Rows of similar length, padded on the right; `scored[b, i]`: the token after position i is the response's."""
    if len(prompts) != len(responses) or not all(len(r) for r in responses):
        raise TenfoldError("give each prompt one response of at least one token.")
    device = next(policy.parameters()).device
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in tqdm(range(0, len(order), size), desc=label, disable=not progress, mininterval=1.0):
        rows = order[start : start + size]
        longest = max(lengths[i] for i in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        scored, mask = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids)
        for place, i in enumerate(rows):
            ids[place, : lengths[i]] = torch.tensor([*prompts[i], *responses[i]])
            mask[place, : lengths[i]] = 1
            scored[place, len(prompts[i]) - 1 : lengths[i] - 1] = True
        targets = ids.roll(-1, dims=1)[scored]
        found = {"ids": ids, "mask": mask, "scored": scored, "targets": targets}
        yield rows, {name: value.to(device) for name, value in found.items()}


@torch.no_grad()
def _logits(model: Any, batch: dict[str, Tensor]) -> Float[Tensor, "scored vocab"]:
    """Logits of the scored positions only, in float32."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = inner.get_decoder()(input_ids=batch["ids"], attention_mask=batch["mask"], use_cache=False)
    return inner.get_output_embeddings()(hidden.last_hidden_state[batch["scored"]]).float()


def _per_row(values: Tensor, batch: dict[str, Tensor]) -> Tensor:
    row = batch["scored"].nonzero()[:, 0]
    total = torch.zeros(len(batch["ids"]), dtype=torch.float64, device=values.device)
    return total.index_add(0, row, values.double()).cpu()
