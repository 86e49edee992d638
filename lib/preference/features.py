"""Features of responses out of a policy's own hidden states, for log-linear policies and evaluators over a pool."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lib.preference.divergence import Ids, batches


@torch.inference_mode()
def response_features(
    policy: Any, prompts: Sequence[Ids], responses: Sequence[Ids], *, batch_size: int = 32, progress: bool = False
) -> Float[Tensor, "rows width"]:
    """Mean of the last hidden states over the positions that predict the response, float32 on the CPU."""
    inner = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    found = torch.zeros(len(prompts), inner.config.hidden_size)
    for rows, batch in batches(policy, prompts, responses, batch_size, progress, "features"):
        hidden = inner.get_decoder()(input_ids=batch["ids"], attention_mask=batch["mask"], use_cache=False)
        scored = batch["scored"].unsqueeze(-1)
        found[rows] = ((hidden.last_hidden_state.float() * scored).sum(1) / scored.sum(1)).cpu()
    return found


def principal(
    features: Float[Tensor, "prompts k width"], *, width: int, train: int
) -> Float[Tensor, "prompts k {width}"]:
    """First principal components of features centred within each prompt, fitted on the first `train` prompts, at unit
    variance; what all responses to a prompt share cannot tell them apart.
    """
    centred = (features - features.mean(1, keepdim=True)).double()
    fitted = centred[:train].flatten(0, 1)
    _, scale, directions = torch.linalg.svd(fitted, full_matrices=False)
    scale = scale[:width] / len(fitted) ** 0.5
    return (centred @ directions[:width].T) / scale
