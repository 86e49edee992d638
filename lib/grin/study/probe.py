"""Looking into a trained model: one layer as an enumerable problem, router gradients, and routing by kind of text."""

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.grin.balance import dispatch_counts, routing_statistics
from lib.grin.modeling import GrinForCausalLM
from lib.grin.routing import surviving
from lib.grin.study.corpus import DOMAINS, Corpus
from lib.grin.study.estimators import EnumerableProblem


@torch.no_grad()
def last_layer_problem(
    model: GrinForCausalLM, windows: Int[Tensor, "windows length"], *, jitter_eps: float, most: int = 1000
) -> EnumerableProblem:
    """Return the last layer's routing of real tokens as an enumerable problem, in float64.

    f(y) is the loss of the next token when the layer's feed-forward output is y: after the last layer only the norm and
    the head follow, so tokens are apart and f is exact. Only tokens with at least two surviving experts are taken, at
    most so many, since all others have gradient 0. Raises ValueError where there is no such token.
    """
    layer, given, out, stream = _last_layer(model, windows)
    residual = (stream - out)[:, :-1].flatten(0, 1).double()
    hidden, labels = given[:, :-1].flatten(0, 1), windows[:, 1:].flatten()
    scores = layer.mlp.router(hidden).scores.double()
    kept = surviving(scores, jitter_eps=jitter_eps)
    rows = (kept.sum(-1) > 1).nonzero().flatten()[:most]
    if len(rows) == 0:
        raise ValueError(f"no token has two surviving experts at jitter_eps={jitter_eps}: use a larger radius")
    norm, head = (copy.deepcopy(module).double() for module in (model.model.norm, model.lm_head))

    def loss(output: Tensor) -> Tensor:
        return nn.functional.cross_entropy(head(norm(residual[rows] + output)), labels[rows], reduction="none")

    outputs = layer.mlp.experts.all_outputs(hidden[rows]).double()
    return EnumerableProblem(scores=scores[rows], outputs=outputs, loss=loss, kept=kept[rows])


def radius_effect(
    model: GrinForCausalLM, windows: Int[Tensor, "windows length"], *, jitter_eps: float, seed: int = 0
) -> tuple[float, float]:
    """Return the fraction of tokens with two or more survivors, and the router-gradient norm, in training mode.

    The balance loss is left out. The model's weights, radius and mode are put back.
    """
    with jitter_radius(model, jitter_eps), torch.random.fork_rng():
        torch.manual_seed(seed)
        model.train()
        logits = model(input_ids=windows).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        gradients = torch.autograd.grad(loss, [router.weight for router in _routers(model)])
        model.eval()
    choice = [stats.choice for stats in routing_statistics(model.routings())]
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    return sum(choice) / len(choice), float(norm)


@contextmanager
def jitter_radius(model: GrinForCausalLM, jitter_eps: float) -> Iterator[None]:
    """Give all routers another radius inside a block."""
    before = {router: router.jitter_eps for router in _routers(model)}
    for router in before:
        router.jitter_eps = jitter_eps
    try:
        yield
    finally:
        for router, value in before.items():
            router.jitter_eps = value


@torch.no_grad()
def routing_profile(model: GrinForCausalLM, windows: Int[Tensor, "windows length"]) -> Float[Tensor, "layers experts"]:
    """Return each layer's share of dispatches to each expert, in evaluation mode (the vectors of Fig. 6)."""
    model.eval()(input_ids=windows.to(model.device))
    return torch.stack([dispatch_counts(r).float() / r.indices.numel() for r in model.routings()])


def profile_similarity(
    first: Float[Tensor, "texts layers experts"], second: Float[Tensor, "texts layers experts"]
) -> Float[Tensor, "texts texts"]:
    """Return the cosine similarity of each pair of routing profiles, layers and experts as one vector."""
    a, b = (nn.functional.normalize(profiles.flatten(1), dim=-1) for profiles in (first, second))
    return a @ b.T


def similarity_of_kinds(model: GrinForCausalLM, text: Corpus) -> Float[Tensor, "kinds kinds"]:
    """Return how one half of the documents of each kind of text is routed, compared with the other half of each."""
    halves: tuple[list[Tensor], list[Tensor]] = ([], [])
    for name in DOMAINS:
        kind = text.of_domain(name)
        order = torch.unique(kind.documents, return_inverse=True)[1]
        for number, profiles in enumerate(halves):
            profiles.append(routing_profile(model, kind.windows[order % 2 == number]))
    return profile_similarity(*map(torch.stack, halves))


def specialisation(similarity: Float[Tensor, "texts texts"]) -> float:
    """Return the mean similarity of a kind of text with itself minus with the others: 0 for blind routing."""
    same = torch.eye(len(similarity), dtype=torch.bool)
    return float(similarity[same].mean() - similarity[~same].mean())


@torch.no_grad()
def missing_share(
    model: GrinForCausalLM, windows: Int[Tensor, "windows length"], *, skew: float = 0.0
) -> Float[Tensor, "tokens"]:
    """Return how much of each token's feed-forward output is missing, as a share of its norm, in the last layer.

    The dispatched output is compared with the sum over all experts' outputs computed densely. `skew` is added to the
    first expert's score, so that a large one sends every token there.
    """
    layer, given, *_ = _last_layer(model, windows)
    router, hidden = layer.mlp.router, given.flatten(0, 1)
    scores = router(hidden).scores
    to_first = torch.arange(scores.shape[1], device=scores.device) == 0
    scores = scores + skew * to_first
    routing = router.route(scores, top_k=router.top_k, jitter_eps=router.jitter_eps, training=False)
    routing = dataclasses.replace(routing, weights=torch.ones_like(routing.weights))
    wanted = torch.zeros_like(scores).scatter(-1, routing.indices, 1.0)
    full = torch.einsum("te,tew->tw", wanted, layer.mlp.experts.all_outputs(hidden))
    return (layer.mlp.experts(hidden, routing) - full).norm(dim=-1) / full.norm(dim=-1)


def _last_layer(model: GrinForCausalLM, windows: Tensor) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Return the last layer, what goes into and comes out of its feed-forward block, and what leaves the layer."""
    layer: Any = model.model.layers[-1]
    seen: dict[str, Tensor] = {}
    hooks = [
        layer.mlp.register_forward_hook(lambda _, given, out: seen.update(given=given[0], out=out)),
        layer.register_forward_hook(lambda _, given, out: seen.update(stream=out)),
    ]
    try:
        model.eval()(input_ids=windows)
    finally:
        for hook in hooks:
            hook.remove()
    return layer, seen["given"], seen["out"], seen["stream"]


def _routers(model: GrinForCausalLM) -> list[Any]:
    return [cast(Any, layer).mlp.router for layer in model.model.layers]
