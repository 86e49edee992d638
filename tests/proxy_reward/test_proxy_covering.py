"""Greedy k-centre against brute force, its bound against the best centres, and its memory."""

import itertools

import pytest
import torch
import torch.utils._python_dispatch

from lib.proxy_reward.covering import covering_radius, k_center


def cloud(seed, count=40, width=5, shift=0.0):
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + shift


def slow_greedy(points, n, labelled):
    """Farthest-first by all distances, one centre at a time."""
    distances = (points[:, None] - points[None]).norm(dim=-1)
    centres, chosen, radii = list(labelled), [], []
    for _ in range(n):
        nearest = distances[:, centres].amin(1)
        nearest[centres] = -1
        centres.append(int(nearest.argmax()))
        chosen.append(centres[-1])
        radii.append(float(distances[:, centres].amin(1).max()))
    return chosen, radii


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("labelled", [[3], [0, 7, 9], list(range(20))])
def test_equals_brute_force(seed, labelled):
    points = cloud(seed)
    found = k_center(points, 12, labelled=torch.tensor(labelled))
    chosen, radii = slow_greedy(points, 12, labelled)
    assert found.chosen.tolist() == chosen
    torch.testing.assert_close(found.radii, torch.tensor(radii, dtype=torch.float64), atol=1e-7, rtol=0)
    assert found.radius == pytest.approx(covering_radius(points, torch.tensor(labelled + chosen)), abs=1e-7)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("labelled", [[], [2, 5]])
def test_radius_is_at_most_twice_the_best_one(seed, labelled):
    points, n = cloud(seed, count=12, width=2), 3
    seeded = torch.tensor(labelled, dtype=torch.long)
    found = k_center(points, n, labelled=seeded, generator=torch.Generator().manual_seed(seed))
    best = min(
        covering_radius(points, torch.cat([seeded, torch.tensor(centres)]))
        for centres in itertools.combinations(range(len(points)), n)
    )
    assert best - 1e-9 <= found.radius <= 2 * best + 1e-9


def test_a_large_common_mean_does_not_blur_distances():
    points = cloud(0).float()
    far = k_center(points + 1000, 10, labelled=torch.tensor([0]))
    assert far.chosen.tolist() == k_center(points, 10, labelled=torch.tensor([0])).chosen.tolist()


def test_duplicates_are_picked_last_and_never_twice():
    points = torch.cat([torch.zeros(6, 2), torch.eye(2), 3 * torch.eye(2)])
    found = k_center(points, 9, labelled=torch.tensor([0]))
    assert sorted(found.chosen.tolist()) == list(range(1, 10))
    assert set(found.chosen[:4].tolist()) == {6, 7, 8, 9}
    assert found.radii[-1] == 0


def test_radii_fall_and_prefixes_are_nested():
    points, seeded = cloud(1), torch.tensor([4])
    long, short = k_center(points, 20, labelled=seeded), k_center(points, 8, labelled=seeded)
    assert long.chosen[:8].tolist() == short.chosen.tolist()
    assert (long.radii.diff() <= 1e-12).all()


def test_memory_is_linear_in_the_points():
    points = torch.randn(20_000, 64, generator=torch.Generator().manual_seed(0))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        k_center(points, 5, labelled=torch.arange(200))
    assert largest <= 64 * len(points)  # a matrix of all distances has 20,000 times as many numbers as points


@pytest.mark.parametrize(("n", "labelled"), [(0, [0]), (40, [0]), (1, list(range(40)))])
def test_refuses_what_the_points_cannot_give(n, labelled):
    with pytest.raises(ValueError, match="centres were asked for"):
        k_center(cloud(0), n, labelled=torch.tensor(labelled))


def test_refuses_points_that_are_not_finite_and_no_centres():
    points = cloud(0)
    with pytest.raises(ValueError, match="no centre"):
        covering_radius(points, torch.tensor([], dtype=torch.long))
    points[3, 1] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        k_center(points, 2)
