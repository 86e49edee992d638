"""Speed and memory of a layer, forward and backward, as texts grow; and of decoding as the context grows.

Ratios are ours / peer in seconds or MiB, so smaller is better. A given share of tokens is activated by shifting the
configurator's bias to that quantile of its scores on the very input.
"""

import contextlib
import ctypes
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, cast

import torch

from lib.seqboat.cache import SeqBoatCache
from lib.seqboat.configuration import SeqBoatConfig
from lib.seqboat.layers import SeqBoatLayer
from lib.seqboat.modeling import SeqBoatForCausalLM, SeqBoatModel
from lib.seqboat.study import peers  # noqa: F401 - makes the peers' layers known
from lib.seqboat.study.probe import saved_bytes

WIDTH, WINDOW = 128, 128
LENGTHS = (1024, 4096, 16_384, 65_536)
RATES = (0.1, 0.5, 1.0)
SLOPE = 1.05  # greatest exponent of time in length
LARGEST = 2**31 - 1


def cases(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the cases: growth with length, peers at equal width and window, and decoding; `quick` is the smallest."""
    lengths = (256, 512) if quick else LENGTHS
    yield from _growth(lengths)
    for tokens in lengths[1:-1] or lengths[-1:]:
        yield from _against_peers(tokens)
    yield from _decoding(*((64, 128, 4) if quick else (LENGTHS[0], LENGTHS[-1], 64)))


def layer_of_rate(
    rate: float | None, tokens: int, *, device: str = "cpu", **changes: Any
) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
    """Return a layer at the given activation rate (None: as it is) and a call that runs it on one text of `tokens`."""
    torch.manual_seed(0)
    config = SeqBoatConfig(
        hidden_size=WIDTH, value_size=2 * WIDTH, key_size=WIDTH // 2, feed_forward_size=4 * WIDTH, window=WINDOW,
        is_decoder=True, positions="rotary", norm="layer", prenorm=True, num_hidden_layers=1,
    )  # fmt: skip
    for name, value in changes.items():
        setattr(config, name, value)
    layer = SeqBoatModel(config).layers[0].to(device)
    x = torch.randn(1, tokens, WIDTH, generator=torch.Generator().manual_seed(1)).to(device)
    real = torch.ones(1, tokens, dtype=torch.bool, device=device)
    positions = torch.arange(tokens, device=device).unsqueeze(0)
    if rate is not None:
        layer = cast(SeqBoatLayer, layer)
        configurator = layer.sma.configurator
        configurator.always_active = rate >= 1
        with torch.inference_mode():
            scores = configurator.scores(layer.state_of(x, real))
            configurator.activation_bias = float((scores[..., 1] - scores[..., 0]).quantile(1 - rate))
    return layer, lambda: layer(x.detach().requires_grad_(), real, positions)[0]


def keep_pages() -> None:
    """Let the allocator of Linux keep what is freed, whatever its size; elsewhere nothing happens.

    glibc asks the system anew for every block above 32 MiB, which then comes page by page: a tensor of 65,536 tokens
    and 128 channels is the first above. So a step at 65,536 tokens took 2.44 CPU-seconds, 4.95 times that at 16,384;
    with pages kept 1.60, 3.98 times. `MALLOC_MMAP_THRESHOLD_` and `MALLOC_TRIM_THRESHOLD_` do the same for a program.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        allocator = ctypes.CDLL(None)
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            allocator.mallopt(option, LARGEST)


def training_step(rate: float | None, tokens: int, **changes: Any) -> Callable[[], None]:
    """Return a call that runs a layer forward and backward once on a text of `tokens`."""
    keep_pages()
    layer, forward = layer_of_rate(rate, tokens, **changes)

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        forward().sum().backward()

    return step


def seconds(step: Callable[[], Any]) -> float:
    """Return the wall-clock time of one call, in seconds, with the accelerator's queue emptied before and after."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    synchronize()
    began = time.perf_counter()
    step()
    synchronize()
    return time.perf_counter() - began


@cache
def saved_mebibytes(rate: float | None, tokens: int, **changes: Any) -> float:
    """Return the MiB that a layer keeps for its backward pass on a text of `tokens`."""
    return saved_bytes(layer_of_rate(rate, tokens, **changes)[1]) / 2**20


PEERS: dict[str, dict[str, Any]] = {
    "full-attention GAU": {"window": None, "always_active": True},
    "Transformer layer (SDPA)": {"layer": "transformer"},
    "MEGA-chunk": {"layer": "mega"},
}
Case = dict[str, Any]


def _case(
    name: str, unit: str, ours: Callable, peer: Callable, peer_name: str, goal: float | None, **more: Any
) -> Case:
    return {"name": name, "unit": unit, "ours": ours, "peer": peer, "peer_name": peer_name, "goal": goal, **more}


def _memory(rate: float, tokens: int, peer: Callable, peer_name: str, goal: float | None) -> Case:
    name = f"{rate:.0%} active, {tokens} tokens, kept for the backward pass, against {peer_name}"
    return _case(name, "MiB", partial(saved_mebibytes, rate, tokens), peer, peer_name, goal)


def _growth(lengths: tuple[int, ...]) -> Iterator[Case]:
    first, last = lengths[0], lengths[-1]
    for rate in RATES:
        for short, long in zip(lengths, lengths[1:], strict=False):
            name, goal = f"{rate:.0%} active, {long} tokens against {short}", (long / short) ** SLOPE
            yield _case(name, "s", training_step(rate, long), training_step(rate, short), f"{short} tokens", goal)
        yield _memory(rate, last, partial(saved_mebibytes, rate, first), f"{first} tokens", last / first * 1.05)


def _against_peers(tokens: int) -> Iterator[Case]:
    goals = {name: 1 / 3 if tokens >= 16_000 else 1.0 for name in PEERS} | {"MEGA-chunk": 1.0}
    for name, changes in PEERS.items():
        peer = training_step(None, tokens, **changes)
        slow = tokens > 5000 and name != "MEGA-chunk"  # quadratic peers take long: they are timed at one rate
        for rate in (0.5,) if slow else RATES:
            what, curve = f"{rate:.0%} active, {tokens} tokens, against {name}", f"{rate:.0%} active"
            goal = None if name == "MEGA-chunk" and rate > 0.5 else goals[name]
            yield _case(what, "s", training_step(rate, tokens), peer, name, goal, curve=curve, size=tokens)
            yield _memory(rate, tokens, partial(saved_mebibytes, None, tokens, **changes), name, None)


def _decoding(short: int, long: int, tokens: int) -> Iterator[Case]:
    after_long, after_short = Decoder(long), Decoder(short)
    times = partial(after_long.milliseconds, tokens), partial(after_short.milliseconds, tokens)
    yield _case(f"a token decoded after {long} tokens", "ms", *times, f"after {short}", 1.1)
    yield _case(f"cache after {long} tokens", "MiB", after_long.mebibytes, after_short.mebibytes, f"after {short}", 1.0)


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
        """Return the time of each of the next tokens, in ms."""
        return [1e3 * seconds(lambda: self.model(input_ids=self.ids[:, -1:], cache=self.cache)) for _ in range(tokens)]

    def mebibytes(self) -> float:
        """Return the size of the cache."""
        return self.cache.num_bytes() / 2**20
