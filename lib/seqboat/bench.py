"""Speed and memory of a layer, forward and backward, as texts grow; and of decoding as the context grows.

Ratios are ours / peer in seconds or MiB, so smaller is better. A given share of tokens is activated by shifting the
configurator's bias to that quantile of its scores on the very input.
"""

import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, cast

import torch

from lib.seqboat.cache import SeqBoatCache
from lib.seqboat.configuration import SeqBoatConfig
from lib.seqboat.layers import SeqBoatLayer
from lib.seqboat.modeling import SeqBoatForCausalLM, SeqBoatModel
from lib.seqboat.probes import saved_bytes

WIDTH, WINDOW = 128, 128
LENGTHS = (1024, 4096, 16_384, 65_536)
RATES = (0.1, 0.5, 1.0)
SLOPE = 1.1  # greatest exponent of time in length


def cases(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the cases: growth with length, peers at equal width and window, and decoding; `quick` is the smallest."""
    lengths = (256, 512) if quick else LENGTHS
    yield from _growth(lengths)
    for tokens in lengths[1:-1] or lengths[-1:]:
        yield from _against_peers(tokens)
    yield from _decoding(*((64, 128, 4) if quick else (LENGTHS[0], LENGTHS[-1], 64)))


def layer_of_rate(
    rate: float | None, tokens: int, **changes: Any
) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
    """Return a layer at the given activation rate (None: as it is) and a call that runs it on one text of `tokens`."""
    torch.manual_seed(0)
    config = SeqBoatConfig(
        hidden_size=WIDTH, value_size=2 * WIDTH, key_size=WIDTH // 2, feed_forward_size=4 * WIDTH, window=WINDOW,
        is_decoder=True, positions="rotary", norm="layer", prenorm=True, num_hidden_layers=1,
    )  # fmt: skip
    for name, value in changes.items():
        setattr(config, name, value)
    layer = SeqBoatModel(config).layers[0]
    x = torch.randn(1, tokens, WIDTH, generator=torch.Generator().manual_seed(1))
    if rate is not None:
        set_rate(cast(SeqBoatLayer, layer), x, rate)
    real = torch.ones(1, tokens, dtype=torch.bool)
    positions = torch.arange(tokens).unsqueeze(0)
    return layer, lambda: layer(x.detach().requires_grad_(), real, positions)[0]


def set_rate(layer: SeqBoatLayer, x: torch.Tensor, rate: float) -> None:
    """Shift the configurator's bias so that a share `rate` of the tokens of `x` is active."""
    configurator = layer.sma.configurator
    configurator.always_active = rate >= 1
    with torch.inference_mode():
        scores = configurator.scores(layer.state_of(x, torch.ones(x.shape[:2], dtype=torch.bool)))
        configurator.activation_bias = float((scores[..., 1] - scores[..., 0]).quantile(1 - rate))


def training_step(rate: float | None, tokens: int, **changes: Any) -> Callable[[], None]:
    """Return a call that runs a layer forward and backward once on a text of `tokens`."""
    layer, forward = layer_of_rate(rate, tokens, **changes)

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        forward().sum().backward()

    return step


def seconds(step: Callable[[], None]) -> float:
    """Return the wall-clock time of one call, in seconds."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


@cache
def saved_mebibytes(rate: float | None, tokens: int, **changes: Any) -> float:
    """MiB that a layer keeps for its backward pass on a text of `tokens`."""
    return saved_bytes(layer_of_rate(rate, tokens, **changes)[1]) / 2**20


def _growth(lengths: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    for rate in RATES:
        for short, long in zip(lengths, lengths[1:], strict=False):
            yield {
                "name": f"{rate:.0%} active, {long} tokens against {short}", "unit": "s",
                "ours": training_step(rate, long), "peer": training_step(rate, short),
                "peer_name": f"{short} tokens", "goal": (long / short) ** SLOPE,
            }  # fmt: skip
        yield _memory(rate, lengths[-1], rate, lengths[0], {}, f"{lengths[0]} tokens", lengths[-1] / lengths[0] * 1.05)


PEERS: dict[str, dict[str, Any]] = {
    "full-attention GAU": {"window": None, "always_active": True},
    "Transformer layer (SDPA)": {"layer": "transformer"},
    "MEGA-chunk": {"layer": "mega"},
}


def _against_peers(tokens: int) -> Iterator[dict[str, Any]]:
    goals = {name: 1 / 3 if tokens >= 16_000 else 1.0 for name in PEERS} | {"MEGA-chunk": 1.0}
    for name, changes in PEERS.items():
        peer = training_step(None, tokens, **changes)
        slow = tokens > 5000 and name != "MEGA-chunk"  # quadratic peers take long: they are timed at one rate
        for rate in (0.5,) if slow else RATES:
            goal = None if name == "MEGA-chunk" and rate > 0.5 else goals[name]
            yield {
                "name": f"{rate:.0%} active, {tokens} tokens, against {name}", "unit": "s",
                "ours": training_step(rate, tokens), "peer": peer, "peer_name": name, "goal": goal,
                "curve": f"{rate:.0%} active", "size": tokens,
            }  # fmt: skip
            yield _memory(rate, tokens, None, tokens, changes, name, None)


def _memory(
    rate: float, tokens: int, peer_rate: float | None, peer_tokens: int, changes: dict[str, Any], name: str, goal: Any
) -> dict[str, Any]:
    return {
        "name": f"{rate:.0%} active, {tokens} tokens, kept for the backward pass, against {name}", "unit": "MiB",
        "ours": lambda: saved_mebibytes(rate, tokens),
        "peer": lambda: saved_mebibytes(peer_rate, peer_tokens, **changes),
        "peer_name": name, "goal": goal,
    }  # fmt: skip


def _decoding(short: int, long: int, tokens: int) -> Iterator[dict[str, Any]]:
    decoders = {context: Decoder(context) for context in (short, long)}
    yield {
        "name": f"a token decoded after {long} tokens", "unit": "ms",
        "ours": lambda: decoders[long].milliseconds(tokens), "peer": lambda: decoders[short].milliseconds(tokens),
        "peer_name": f"after {short}", "goal": 1.1,
    }  # fmt: skip
    yield {
        "name": f"cache after {long} tokens", "unit": "MiB",
        "ours": lambda: decoders[long].cache.num_bytes() / 2**20,
        "peer": lambda: decoders[short].cache.num_bytes() / 2**20, "peer_name": f"after {short}", "goal": 1.0,
    }  # fmt: skip


class Decoder:
    """A four-layer byte model that has read a context, and goes on from there."""

    @torch.inference_mode()
    def __init__(self, context: int) -> None:
        torch.manual_seed(0)
        config = SeqBoatConfig(
            vocab_size=257, hidden_size=WIDTH, value_size=2 * WIDTH, key_size=WIDTH // 2, window=WINDOW,
            is_decoder=True, positions="rotary", norm="layer", prenorm=True,
        )  # fmt: skip
        self.model = SeqBoatForCausalLM(config).eval()
        self.ids = torch.randint(1, 257, (1, context + 1), generator=torch.Generator().manual_seed(1))
        self.cache = SeqBoatCache(config.num_hidden_layers)
        for part in self.ids.split(4096, dim=1):
            self.model(input_ids=part, cache=self.cache, logits_to_keep=1)

    @torch.inference_mode()
    def milliseconds(self, tokens: int) -> list[float]:
        """Time of each of the next tokens, in ms."""
        found = []
        for _ in range(tokens):
            began = time.perf_counter()
            self.model(input_ids=self.ids[:, -1:], cache=self.cache)
            found.append(1e3 * (time.perf_counter() - began))
        return found
