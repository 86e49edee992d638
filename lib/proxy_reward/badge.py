"""BADGE (Ash et al., arXiv:1906.03671) for a judge that gives one of a few scores.

The gradient of the log-loss at the judge's own best guess, with respect to the last linear layer, is an outer product
g = (p - e_guess) x phi. Its length says how unsure the judge is, its direction what it would learn; k-means++ on the
g's picks a batch that is both. Distances between outer products come from their factors, so no g is ever formed.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class GradientEmbeddings:
    """Factors of g = residual x features for every item."""

    residual: Float[Tensor, "items classes"]
    features: Float[Tensor, "items width"]

    def squared_distance(self, index: int) -> Float[Tensor, " items"]:
        """Squared distance of every g to one of them: <a x f, b x h> = <a, b> <f, h>."""
        inner = (self.residual @ self.residual[index]) * (self.features @ self.features[index])
        norms = self.residual.square().sum(1) * self.features.square().sum(1)
        return (norms - 2 * inner + norms[index]).clamp(min=0)

    def squared_norm(self) -> Float[Tensor, " items"]:
        """Squared length of every g."""
        return self.residual.square().sum(1) * self.features.square().sum(1)


def gradient_embeddings(
    probabilities: Float[Tensor, "items classes"], features: Float[Tensor, "items width"]
) -> GradientEmbeddings:
    """Gradient embeddings at the judge's own best guess (Eq. 1 of arXiv:1906.03671)."""
    guess = torch.nn.functional.one_hot(probabilities.argmax(1), probabilities.shape[1])
    return GradientEmbeddings(probabilities - guess, features)


def badge(
    gradients: GradientEmbeddings,
    n: int,
    *,
    excluded: Int[Tensor, " excluded"] | None = None,
    generator: torch.Generator,
) -> Int[Tensor, " n"]:
    """Pick `n` items by k-means++: the longest gradient first, then by squared distance to the nearest pick.

    `excluded` are never picked. Where every item left coincides with a pick, the rest is drawn evenly. Raises
    ValueError where fewer than `n` items are left.
    """
    free = torch.ones(len(gradients.features), dtype=torch.bool)
    if excluded is not None:
        free[excluded] = False
    left = int(free.sum())
    if not 1 <= n <= left:
        raise ValueError(f"{n} items were asked for, and {left} are left: ask for 1 to {left}")
    picks = [int(gradients.squared_norm().masked_fill(~free, -1.0).argmax())]
    nearest = gradients.squared_distance(picks[0])
    free[picks[0]] = False
    while len(picks) < n:
        weights = (nearest * free).double()
        if float(weights.sum()) <= 0:
            weights = free.double()
        pick = int(torch.multinomial(weights, 1, generator=generator))
        picks.append(pick)
        free[pick] = False
        nearest = torch.minimum(nearest, gradients.squared_distance(pick))
    return torch.tensor(picks)
