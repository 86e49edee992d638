"""Load balancing over the global batch, the z-loss, and what a router did to a batch.

Symbols (arXiv:2409.12136, section 2.3): n experts, f_i = the share of all dispatches that went to expert i, counted
over every data-parallel worker and micro-batch, and P_i = the mean of the full, unmasked softmax(z)_i.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from lib.grin.experts import tokens_per_expert
from lib.grin.routing import Routing


@torch.no_grad()
def dispatch_counts(routing: Routing, *, mask: Tensor | None = None) -> Int[Tensor, "experts"]:
    """Return how many dispatches each expert gets from this worker, of the tokens in `mask` where one is given.

    `mask` is 1 (or True) at the tokens that count, as an attention mask [batch, tokens] is. Raises ValueError for a
    mask of another number of tokens.
    """
    return tokens_per_expert(routing.indices[_kept(routing, mask)], routing.scores.shape[-1])


def _kept(routing: Routing, mask: Tensor | None) -> Any:
    """Return which rows of a routing a mask keeps, as an index."""
    if mask is None:
        return slice(None)
    if mask.numel() != len(routing.scores):
        raise ValueError(f"a mask of {mask.numel()} tokens does not fit a routing of {len(routing.scores)} tokens")
    return mask.flatten().bool()


@torch.no_grad()
def over_workers(value: Tensor, *, group: Any = None) -> Tensor:
    """Return the sum of a tensor over the data-parallel group; the tensor itself where nothing is distributed."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    total = value.clone()
    dist.all_reduce(total, group=group)
    return total


def balance_loss(
    routing: Routing,
    *,
    counts: Int[Tensor, "experts"] | None = None,
    mask: Tensor | None = None,
    shards: int = 1,
    group: Any = None,
) -> Float[Tensor, ""]:
    """Return n sum_i f_i P_i of arXiv:2409.12136, section 2.3 (read): 1 where balanced, n where one expert gets all.

    f is counted over the whole data-parallel `group`; pass `counts`, already summed over workers and over all
    micro-batches of a step, to make it global over gradient accumulation too. The mean of the workers' values (what
    DDP's averaged gradients follow) is exactly the single-process loss. `shards` > 1 is the conventional local loss:
    each of so many equal parts of the batch balances on its own. `mask` is 1 (or True) at the tokens that count, as an
    attention mask [batch, tokens] is. Raises ValueError for shards that do not divide the batch, for local shards of a
    masked batch or with given counts, and for a mask of another number of tokens.
    """
    if shards != 1:
        return _local_loss(routing, shards, mask, counts)
    probs = routing.scores.float().softmax(dim=-1)[_kept(routing, mask)]
    given = dispatch_counts(routing, mask=mask) if counts is None else counts
    totals = given if counts is not None else over_workers(given, group=group)
    share = totals / totals.sum().clamp(min=1)
    # Workers may hold unequal numbers of real tokens: divide by the global number, times the workers averaged over.
    tokens = over_workers(torch.tensor(float(len(probs)), device=probs.device), group=group)
    workers = over_workers(torch.ones((), device=probs.device), group=group)
    mean_probs = probs.sum(0) * (workers / tokens.clamp(min=1))
    return share.numel() * (share * mean_probs).sum()


def _local_loss(routing: Routing, shards: int, mask: Tensor | None, counts: Tensor | None) -> Tensor:
    if mask is not None or counts is not None:
        raise ValueError("a local balance loss takes neither a mask nor counts: leave them out, or use shards=1")
    if shards < 1 or len(routing.scores) % shards:
        raise ValueError(f"{len(routing.scores)} tokens cannot be split into {shards} equal shards")
    experts = routing.scores.shape[-1]
    probs = routing.scores.float().softmax(dim=-1).unflatten(0, (shards, -1)).mean(1)
    owner = torch.arange(shards, device=probs.device).repeat_interleave(routing.indices.numel() // shards)
    counted = torch.bincount(owner * experts + routing.indices.flatten(), minlength=shards * experts)
    share = counted.view(shards, experts) / (routing.indices.numel() // shards)
    return experts * (share * probs).sum(-1).mean()


def z_loss(scores: Float[Tensor, "tokens experts"]) -> Float[Tensor, ""]:
    """Return the mean squared log-partition of the scores, which keeps them small (ST-MoE, arXiv:2202.08906, Eq. 5)."""
    # Not part of the paper; offered because users expect it, with coefficient 0 by default.
    return scores.float().logsumexp(dim=-1).square().mean()


@dataclass(frozen=True)
class RoutingStatistics:
    """What one router did: each expert's share of the dispatches, and how often there was anything to choose.

    `max_load` is the largest share (1/n where balanced), `choice` the fraction of tokens whose first draw had at least
    two surviving experts: all other tokens send the router no gradient.
    """

    load: Float[Tensor, "experts"]
    max_load: float
    choice: float
    entropy: float


@torch.no_grad()
def routing_statistics(routings: Sequence[Routing]) -> list[RoutingStatistics]:
    """Return the statistics of each layer's routing; entropy of the load in nats."""
    loads = [dispatch_counts(routing).float() / routing.indices.numel() for routing in routings]
    return [
        RoutingStatistics(
            load=load,
            max_load=float(load.max()),
            choice=float((routing.survivors[:, 0] > 1).float().mean()),
            entropy=float(torch.special.entr(load).sum()),
        )
        for load, routing in zip(loads, routings, strict=True)
    ]
