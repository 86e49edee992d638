"""Condition numbers in log space against hand values."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from lib.lorc import cumulative_log_condition, log_condition_numbers, singular_values


def test_log_condition_by_hand() -> None:
    values = torch.tensor([[8.0, 4.0, 2.0], [3.0, 3.0, 3.0]])
    torch.testing.assert_close(log_condition_numbers(values), torch.tensor([np.log(4.0), 0.0]).double())


def test_zero_singular_values_are_left_out() -> None:
    assert float(log_condition_numbers(torch.tensor([[6.0, 2.0, 0.0]]))) == pytest.approx(np.log(3))
    with pytest.raises(ValueError, match="no positive singular value"):
        log_condition_numbers(torch.zeros(1, 3))


def test_cumulative_runs_from_each_layer_to_the_last() -> None:
    cumulative = cumulative_log_condition(torch.tensor([1.0, 2.0, 4.0]))
    torch.testing.assert_close(cumulative, torch.tensor([7.0, 6.0, 4.0]).double())


def test_products_that_overflow_are_finite_logs() -> None:
    cumulative = cumulative_log_condition(torch.full((200,), 10.0))
    assert float(cumulative[0]) == pytest.approx(2000)  # exp(2000) overflows a float64
    assert torch.isfinite(cumulative).all()


def test_model_spectra_match_the_weights(make_model: Callable[..., nn.Module]) -> None:
    model = make_model(layers=3)
    spectra = singular_values(model)
    assert spectra.k.shape == spectra.v.shape == (3, 16)
    weight = model.get_submodule("model.layers.1.self_attn.v_proj").weight
    torch.testing.assert_close(spectra.v[1], torch.linalg.svdvals(weight.detach().double()))
    expected = np.log(np.linalg.cond(weight.detach().double().numpy()))
    assert float(log_condition_numbers(spectra.v)[1]) == pytest.approx(expected, rel=1e-6)
    frame = spectra.frame()
    assert list(frame.columns) == ["layer", "matrix", "index", "singular_value"]
    assert len(frame) == 3 * 2 * 16


def test_a_model_without_weights_is_refused(make_model: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match="on the meta device"):
        singular_values(make_model().to("meta"))
