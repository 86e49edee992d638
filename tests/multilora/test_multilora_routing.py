"""Stacked copies against peft's own mixed batches, layer by layer, for every way a layer can be built."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from lib.multilora.layers import AdapterLayers
from lib.multilora.routing import Routing, _adder, _Stacked

NAMES = ("a", "b", "c")


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 10)
        self.conv = nn.Conv2d(6, 10, 3, stride=2, padding=1)


def build(**ranks):
    torch.manual_seed(0)
    model = Two().eval()
    for name, rank in ranks.items():
        config = LoraConfig(r=rank, lora_alpha=3, target_modules=["linear", "conv"], init_lora_weights=False)
        inject_adapter_in_model(config, model, adapter_name=name)
    return model


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("which", "shape"), [("linear", (6,)), ("linear", (7, 6)), ("conv", (6, 5, 5))])
@pytest.mark.parametrize(("ranks", "stacked"), [((4, 4, 4), True), ((4, 2, 4), False), ((4, 4), False)])
def test_stacked_copies_are_pefts_mixed_batch(rows, which, shape, ranks, stacked):
    model = build(**dict(zip(NAMES, ranks, strict=False)))
    layers = AdapterLayers(model)
    layers.set({"a": 1.0, "b": 0.5, "c": -2.0})
    layer = getattr(model, which)
    x = torch.randn(3 * rows, *shape)
    # A name that no adapter has stands for a layer that an adapter leaves alone.
    expected = layer(x, adapter_names=[name for name in NAMES for _ in range(rows)])
    routing = Routing()
    with routing.installed(layers):
        unrouted = layer(x)
        with routing.on(NAMES):
            assert (layer(x) - expected).abs().max() < 1e-5
        assert torch.equal(layer(x), unrouted)
    assert isinstance(_adder(layer, NAMES), _Stacked) is stacked
    assert "forward" not in vars(layer)


def test_scalings_that_change_are_followed():
    model = build(a=4, b=4)
    layers, routing = AdapterLayers(model), Routing()
    x = torch.randn(2, 6)
    with routing.installed(layers):
        for weights in ({"a": 1.0, "b": 1.0}, {"a": 0.3, "b": 2.0}):
            layers.set(weights)
            with routing.on(("a", "b")):
                routed = model.linear(x)
            for row, name in enumerate(weights):
                layers.set({name: weights[name]})
                assert (model.linear(x[row]) - routed[row]).abs().max() < 1e-5


def test_another_number_format_goes_block_by_block():
    model = build(a=4, b=4)
    model.linear.base_layer.bfloat16()
    assert not isinstance(_adder(model.linear, ("a", "b")), _Stacked)
    x = torch.randn(4, 6, dtype=torch.bfloat16)
    expected = model.linear(x, adapter_names=["a", "a", "b", "b"])
    routing = Routing()
    with routing.installed(AdapterLayers(model)), routing.on(("a", "b")):
        assert torch.allclose(model.linear(x).float(), expected.float(), atol=2e-2)
