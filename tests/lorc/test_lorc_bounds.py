"""The bounds hold for measured errors, and are reached where they should be."""

import pytest
import torch

from lib.lorc.bounds import depth_contributions, depth_error, frobenius_error, layer_error, matrix_error


def weights(count: int, size: int = 10, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, size, generator=generator) / size**0.5 for _ in range(count)]


def inputs(count: int = 50, size: int = 10) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("rank", [1, 4, 9, 10])
def test_frobenius_error_equals_its_bound(rank: int) -> None:
    found = frobenius_error(weights(1)[0], rank)
    torch.testing.assert_close(found.measured, found.bound, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_the_matrix_bound_holds_and_its_direction_reaches_it(rank: int) -> None:
    (weight,) = weights(1)
    assert matrix_error(weight, rank, inputs()).holds
    worst = torch.linalg.svd(weight.double()).Vh[rank : rank + 1]
    found = matrix_error(weight, rank, worst)
    torch.testing.assert_close(found.measured, found.bound)


@pytest.mark.parametrize(("activation", "lipschitz"), [(torch.relu, 1.0), (torch.tanh, 1.0), (lambda x: 3 * x, 3.0)])
def test_the_layer_bound_holds(activation: object, lipschitz: float) -> None:
    assert layer_error(weights(1)[0], 4, inputs(), activation=activation, lipschitz=lipschitz).holds


@pytest.mark.parametrize("activation", [torch.relu, torch.tanh])
@pytest.mark.parametrize("ranks", [(4, 4, 4, 4, 4), (9, 7, 5, 3, 1), (1, 3, 5, 7, 9), (10, 10, 10, 10, 10)])
def test_the_depth_bound_holds_at_every_depth(activation: object, ranks: tuple[int, ...]) -> None:
    found = depth_error(weights(5), ranks, inputs(), activation=activation, lipschitz=1.0)
    assert found.measured.shape == (5, 50)
    assert found.holds
    if ranks[0] == 10:
        assert found.bound.max() == 0
    else:
        assert found.measured.min() > 0


def test_the_depth_bound_by_hand() -> None:
    # Rank 1 keeps diag(3, 0) and diag(0, 4). Of x = (0, 1) the first layer loses 1 = sigma_2 |x|; the second makes that
    # 4 = |W_2| 1, and its own truncation may add sigma_2 |x_1| = 1.
    chain = [torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([1.0, 4.0]))]
    found = depth_error(chain, (1, 1), torch.tensor([[0.0, 1.0]]), activation=lambda x: x, lipschitz=1.0)
    torch.testing.assert_close(found.measured[:, 0], torch.tensor([1.0, 4.0]).double())
    torch.testing.assert_close(found.bound[:, 0], torch.tensor([1.0, 5.0]).double())


def test_a_bound_that_is_broken_is_reported() -> None:
    found = matrix_error(weights(1)[0], 4, inputs())
    assert not type(found)(measured=found.bound * 1.01, bound=found.bound).holds


def test_earlier_layers_contribute_more_where_later_ones_amplify() -> None:
    chain = [2 * torch.eye(4) + torch.diag(torch.tensor([1.0, 0, 0, 0])) for _ in range(3)]
    # sigma_{r+1} = 2 and |W| = 3 in every layer: 2 x 9, 2 x 3, 2.
    found = depth_contributions(chain, (2, 2, 2), lipschitz=1.0)
    torch.testing.assert_close(found, torch.tensor([18.0, 6.0, 2.0]).double())


def test_ranks_and_weights_must_match() -> None:
    with pytest.raises(ValueError, match="a chain of 3 weights needs as many ranks, got 2"):
        depth_error(weights(3), (1, 2), inputs(), activation=torch.relu, lipschitz=1.0)
