"""SVD-LLM's and Palu's budgets, on a tiny model."""

import numpy as np
import pytest
import torch

from lib.lorc.configuration import MATRICES, attentions, projection
from lib.lorc.study import peers


def test_fisher_information_is_the_sum_of_squared_gradients_of_each_rows_loss(make_model):
    model = make_model().requires_grad_(False)
    rows = torch.randint(model.config.vocab_size, (3, 12), generator=torch.Generator().manual_seed(1))
    found = peers.fisher_information(model, rows.split(2))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    expected = np.zeros_like(found)
    model.requires_grad_(True)
    for row in rows:
        model.zero_grad()
        model(input_ids=row[None], labels=row[None]).loss.backward()
        for i, matrix in enumerate(MATRICES):
            for j, attention in enumerate(attentions(model)):
                expected[i, j] += float(projection(attention, matrix).weight.grad.square().sum())
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.6, 0.9, 1.0])
def test_palus_ranks_are_proportional_within_the_width_and_spend_the_budget(keep):
    information = np.array([[4.0, 1.0, 1.0], [8.0, 2.0, 0.001]])
    plan = peers.palu_plan(information, 16, keep)
    assert plan.total == round(keep * 6 * 16)
    ranks = np.array([plan.ranks_k, plan.ranks_v])
    free = (ranks > 1) & (ranks < 16)
    if free.sum() > 1:
        scales = ranks[free] / information[free]
        assert np.ptp(scales) <= 2.0 / information[free].min(), "not in proportion"
    order = np.argsort(information.ravel())
    assert np.all(np.diff(ranks.ravel()[order]) >= 0)


def test_palus_ranks_come_in_steps():
    plan = peers.palu_plan(np.array([[3.0, 1.0], [2.0, 2.0]]), 16, 0.5, step=4)
    assert plan.step == 4
    assert plan.total == 32
