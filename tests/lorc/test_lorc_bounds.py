"""The bounds hold for measured errors, and are reached where they should be."""

import pytest
import torch

from lib.lorc.study.bounds import depth_error, layer_error


def weights(count: int, size: int = 10, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, size, generator=generator) / size**0.5 for _ in range(count)]


def inputs(count: int = 50, size: int = 10) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_the_matrix_bound_holds_and_its_direction_reaches_it(rank: int) -> None:
    (weight,) = weights(1)
    assert layer_error(weight, rank, inputs()).holds
    worst = torch.linalg.svd(weight.double()).Vh[rank : rank + 1]
    error = layer_error(weight, rank, worst)
    torch.testing.assert_close(error.measured, error.bound)


@pytest.mark.parametrize(("activation", "lipschitz"), [(torch.relu, 1.0), (torch.tanh, 1.0), (lambda x: 3 * x, 3.0)])
def test_the_layer_bound_holds(activation: object, lipschitz: float) -> None:
    assert layer_error(weights(1)[0], 4, inputs(), activation=activation, lipschitz=lipschitz).holds


@pytest.mark.parametrize("activation", [torch.relu, torch.tanh])
@pytest.mark.parametrize("ranks", [(4, 4, 4, 4, 4), (9, 7, 5, 3, 1), (1, 3, 5, 7, 9), (10, 10, 10, 10, 10)])
def test_the_depth_bound_holds_at_every_depth(activation: object, ranks: tuple[int, ...]) -> None:
    error = depth_error(weights(5), ranks, inputs(), activation=activation, lipschitz=1.0)
    assert error.measured.shape == (5, 50)
    assert error.holds
    if ranks[0] == 10:
        assert error.bound.max() == 0
    else:
        assert error.measured.min() > 0


def test_the_depth_bound_by_hand() -> None:
    # Rank 1 keeps diag(3, 0) and diag(0, 4). Of x = (0, 1) the first layer loses 1 = sigma_2 |x|; the second makes that
    # 4 = |W_2| 1, and its own truncation may add sigma_2 |x_1| = 1.
    chain = [torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([1.0, 4.0]))]
    error = depth_error(chain, (1, 1), torch.tensor([[0.0, 1.0]]), activation=lambda x: x, lipschitz=1.0)
    torch.testing.assert_close(error.measured[:, 0], torch.tensor([1.0, 4.0]).double())
    torch.testing.assert_close(error.bound[:, 0], torch.tensor([1.0, 5.0]).double())


def test_a_bound_that_is_broken_is_reported() -> None:
    error = layer_error(weights(1)[0], 4, inputs())
    assert not type(error)(measured=error.bound * 1.01, bound=error.bound).holds


def test_ranks_and_weights_must_match() -> None:
    with pytest.raises(ValueError, match="a chain of 3 weights needs as many ranks, got 2"):
        depth_error(weights(3), (1, 2), inputs(), activation=torch.relu, lipschitz=1.0)
