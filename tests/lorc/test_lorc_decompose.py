"""Truncated SVD against Eckart-Young, hand values and its own invariants."""

import pytest
import torch

from lib.lorc import basis, decompose


def weight(rows: int = 12, columns: int = 20, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_a_diagonal_weight_keeps_its_largest_entries() -> None:
    factors = decompose(torch.diag(torch.tensor([1.0, 5.0, 3.0])), 2)
    assert factors.rank == 2
    torch.testing.assert_close(factors.product(), torch.diag(torch.tensor([0.0, 5.0, 3.0])))


@pytest.mark.parametrize("rank", [1, 5, 11, 12])
def test_error_is_the_tail_of_the_spectrum(rank: int) -> None:
    matrix = weight()
    tail = torch.linalg.svdvals(matrix.double())[rank:]
    error = (matrix - decompose(matrix, rank).product()).double()
    torch.testing.assert_close(error.square().sum(), tail.square().sum(), atol=1e-6, rtol=1e-5)
    assert torch.linalg.matrix_norm(error, 2) == pytest.approx(float(tail[0]) if rank < 12 else 0.0, abs=1e-5)


def test_no_other_projection_of_the_rank_is_closer() -> None:
    matrix, generator = weight(), torch.Generator().manual_seed(1)
    best = (matrix - decompose(matrix, 4).product()).norm()
    for _ in range(20):
        other, _ = torch.linalg.qr(torch.randn(12, 4, generator=generator))
        assert (matrix - other @ other.T @ matrix).norm() >= best


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_factors_have_the_dtype_of_the_weight(dtype: torch.dtype) -> None:
    factors = decompose(weight().to(dtype), 3)
    assert factors.up.dtype == factors.down.dtype == dtype
    assert factors.up.shape == (12, 3)
    assert factors.down.shape == (3, 20)


def test_head_granularity_decomposes_each_head_alone() -> None:
    matrix = weight()
    product = decompose(matrix, 6, groups=3).product()
    for head in range(3):
        rows = slice(4 * head, 4 * head + 4)
        torch.testing.assert_close(product[rows], decompose(matrix[rows], 2).product(), atol=1e-5, rtol=1e-4)


def test_joint_is_never_worse_than_per_head() -> None:
    matrix = weight()
    joint, head = (decompose(matrix, 6, groups=groups).product() for groups in (1, 3))
    assert (matrix - joint).norm() <= (matrix - head).norm()


def test_whitened_rank_minimises_the_error_of_the_outputs() -> None:
    matrix, scale = weight(), torch.logspace(-2, 2, 20)
    inputs = torch.randn(400, 20, generator=torch.Generator().manual_seed(2)) * scale
    root = torch.linalg.cholesky((inputs.T @ inputs / len(inputs)).double())
    whitened = basis(matrix, input_root=root).factors(4, dtype=torch.float64).product()
    exact = matrix.double()
    # The independent form: W L truncated, then L taken out again.
    left, values, right = torch.linalg.svd(exact @ root, full_matrices=False)
    textbook = torch.linalg.solve_triangular(root, (left[:, :4] * values[:4]) @ right[:4], upper=False, left=False)
    torch.testing.assert_close(whitened, textbook, atol=1e-8, rtol=1e-6)
    outputs, plain = inputs.double() @ exact.T, decompose(exact, 4).product()
    error = (inputs.double() @ whitened.T - outputs).square().sum(1).mean()
    assert error < (inputs.double() @ plain.T - outputs).square().sum(1).mean()
    torch.testing.assert_close(error, values[4:].square().sum(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_full_basis_is_the_weight_whatever_weighs_it(groups: int) -> None:
    matrix = weight().double()
    root = torch.linalg.cholesky(weight(20, 60, 3).double() @ weight(20, 60, 3).double().T)
    metric = torch.linalg.cholesky(weight(12, 40, 4).double() @ weight(12, 40, 4).double().T).T
    full = basis(matrix, groups=groups, input_root=root, output_root=metric).factors(12)
    torch.testing.assert_close(full.product(), matrix, atol=1e-9, rtol=1e-9)


def test_output_metric_minimises_the_weighted_error() -> None:
    matrix, metric = weight().double(), torch.diag(torch.logspace(-1, 1, 12).double())
    weighted = basis(matrix, output_root=metric).factors(4).product()
    tail = torch.linalg.svdvals(metric @ matrix)[4:]
    torch.testing.assert_close((metric @ (matrix - weighted)).square().sum(), tail.square().sum())


def test_the_metric_of_a_group_is_what_its_own_outputs_do() -> None:
    matrix, root = weight().double(), weight(12, 12, 4).double()  # G is not symmetric
    weighted = basis(matrix, groups=3, output_root=root).factors(6).product()
    for rows in torch.arange(12).split(4):
        metric = (root.T @ root)[rows][:, rows]  # |G d|^2 of a change d of these outputs alone is d^T metric d
        values, vectors = torch.linalg.eigh(metric)
        half = vectors @ torch.diag(values.sqrt()) @ vectors.T
        tail = torch.linalg.svdvals(half @ matrix[rows])[2:]
        error = torch.einsum("ri,rs,si->", matrix[rows] - weighted[rows], metric, matrix[rows] - weighted[rows])
        torch.testing.assert_close(error, tail.square().sum())


def test_a_projection_wider_than_its_inputs_has_a_full_basis() -> None:
    matrix = weight(20, 12).double()
    full = basis(matrix)
    torch.testing.assert_close(full.factors(20).product(), matrix)
    assert (full.singular_values[0, 12:] == 0).all()


@pytest.mark.parametrize("rank", [0, -1, 13])
def test_rank_outside_the_weight_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=r"rank must be in 1\.\.12 for a 12 x 20 weight"):
        decompose(weight(), rank)


def test_bad_weights_and_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        decompose(torch.full((3, 4), torch.nan), 1)
    with pytest.raises(ValueError, match="rank must be a multiple of 3"):
        decompose(weight(), 4, groups=3)
    with pytest.raises(ValueError, match="cannot be split into 5 equal groups"):
        decompose(weight(), 5, groups=5)
