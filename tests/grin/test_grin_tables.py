"""The frames that the notebook's figures and claims are made from, against plain sums."""

import numpy as np
import pandas as pd
import pytest
import torch

from lib import grin
from lib.grin.study import probe, tables


def test_tokens_are_summed_for_each_model_and_the_cosine_is_that_of_one_long_vector():
    rng = np.random.default_rng(0)
    frames, expected = [], {}
    for estimator, seed in [("v2", 0), ("v2", 1), ("gating", 0)]:
        mean, exact = rng.normal(size=(2, 5, 3))
        columns = {
            "bias": np.linalg.norm(mean - exact, axis=-1),
            "norm": np.linalg.norm(exact, axis=-1),
            "dot": (mean * exact).sum(-1),
            "size": np.linalg.norm(mean, axis=-1),
            "deviation": rng.random(5),
        }
        frames.append(pd.DataFrame(columns).assign(estimator=estimator, target="Eq. 4", stage="late", seed=seed))
        cosine = (mean * exact).sum() / np.linalg.norm(mean) / np.linalg.norm(exact)
        sums = [columns[name].sum() for name in ("bias", "norm", "deviation")]
        expected[estimator, "Eq. 4", "late", seed] = [*sums, cosine, 5]
    found = tables.over_tokens(pd.concat(frames).sample(frac=1, random_state=0))
    assert list(found.columns) == ["bias", "norm", "deviation", "cosine", "tokens"]
    assert len(found) == len(expected)
    for key, numbers in expected.items():
        assert found.loc[key].tolist() == pytest.approx(numbers)


def test_loads_are_the_routing_profile_with_a_row_for_each_layer_and_expert():
    torch.manual_seed(0)
    config = grin.GrinConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=6, pad_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    model = grin.GrinForCausalLM(config).eval()
    windows = torch.randint(0, 61, (4, 16), generator=torch.Generator().manual_seed(1))
    loads = tables.expert_loads(model, windows)
    profile = probe.routing_profile(model, windows)
    assert len(loads) == profile.numel()
    for row in loads.itertuples():
        assert row.load == pytest.approx(float(profile[row.layer, row.expert]))
