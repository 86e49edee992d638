"""What a drafter is taught from: the target's answers at a temperature, and what it thought at each token of them.

arXiv:2410.10141: the target answers training prompts at temperature T_KD; the drafter learns from the answers alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from lib.tempspec.decoder import SpeculativeDecoder
from lib.tempspec.warping import Warping


@dataclass(frozen=True)
class Example:
    """A prompt and an answer: `tokens` of both, of which those from `start` on are the answer, and its temperature."""

    tokens: Int[Tensor, " length"]
    start: int
    temperature: float = 1.0


def answer(
    target: Any,
    prompts: Sequence[Sequence[int]],
    temperature: float,
    *,
    max_new_tokens: int = 64,
    batch_size: int = 96,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> list[Example]:
    """Let the target answer prompts (token ids) at one temperature, in batches of similar length; order is kept.

    The end-of-sequence token belongs to an answer, nothing after it does.
    """
    decoder = SpeculativeDecoder(target, None, temperature=temperature)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    found: dict[int, Example] = {}
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    for chosen in tqdm(batches, desc=f"answers at T = {temperature:g}", unit="batch", disable=not progress):
        ids, mask = left_padded([prompts[index] for index in chosen], target.device)
        output = decoder.generate(ids, mask, max_new_tokens, generator)
        for index, row, new in zip(chosen, output.sequences.cpu(), output.new_tokens.tolist(), strict=True):
            start = len(prompts[index])
            tokens = row[ids.shape[1] - start : ids.shape[1] + new].clone()
            found[index] = Example(tokens, start, float(temperature))
    return [found[index] for index in range(len(prompts))]


def left_padded(rows: Sequence[Sequence[int]], device: Any = None) -> tuple[Tensor, Tensor]:
    """Token ids [rows, longest] padded on the left, and their mask."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right. `scored[b, i]`: token i + 1 is part of the answer, so position i is taught.

    Per scored position: the token that came (`targets`), the temperature, and the target's `top_ids` with their
    log-probabilities at that temperature; `features` are hidden states of every position, where asked for.
    """

    tokens: Int[Tensor, "batch length"]
    scored: Bool[Tensor, "batch length"]
    targets: Int[Tensor, " scored"]
    temperature: Float[Tensor, " scored"]
    top_ids: Int[Tensor, "scored top"] | None = None
    top_log_probs: Float[Tensor, "scored top"] | None = None
    features: Float[Tensor, "batch length width"] | None = None


def collate(examples: Sequence[Example], device: Any = None) -> Batch:
    """Pad examples into a batch without the target's opinion."""
    lengths = torch.tensor([len(example.tokens) for example in examples])
    starts = torch.tensor([example.start for example in examples])
    tokens = nn.utils.rnn.pad_sequence([example.tokens for example in examples], batch_first=True)
    places = torch.arange(tokens.shape[1])
    scored = (places >= starts[:, None] - 1) & (places < lengths[:, None] - 1)
    temperature = torch.tensor([example.temperature for example in examples])[:, None].expand_as(tokens)[scored]
    following = tokens.roll(-1, dims=1)
    batch = Batch(tokens, scored, following[scored], temperature)
    return Batch(*(part.to(device) for part in (batch.tokens, batch.scored, batch.targets, batch.temperature)))


def observe(
    target: Any,
    examples: Iterable[Sequence[Example]],
    *,
    top: int = 32,
    layers: tuple[int, ...] = (),
) -> Iterator[Batch]:
    """Yield each batch of examples with what the target thinks of it, in one pass: its top log-probabilities, features.

    The log-probabilities are those at the answer's own temperature; at T = 0 all probability lies on the first.
    """
    for group in examples:
        batch = collate(group, target.device)
        with torch.no_grad():
            output = target.get_decoder()(batch.tokens, use_cache=False, output_hidden_states=bool(layers))
            logits = target.get_output_embeddings()(output.last_hidden_state[batch.scored]).float()
            features = torch.cat([output.hidden_states[i] for i in layers], dim=-1) if layers else None
            top_ids = logits.topk(min(top, logits.shape[-1]), dim=-1).indices
            top_log_probs = log_probs(logits, batch.temperature).gather(-1, top_ids)
        known = (batch.tokens, batch.scored, batch.targets, batch.temperature)
        yield Batch(*known, top_ids=top_ids, top_log_probs=top_log_probs, features=features)


def log_probs(
    logits: Float[Tensor, "tokens vocab"], temperature: Float[Tensor, " tokens"]
) -> Float[Tensor, "tokens vocab"]:
    """Log-probabilities of each row at its own temperature; at 0 they are those of the largest logit alone."""
    warm = logits / torch.where(temperature > 0, temperature, 1.0)[:, None]
    found = warm.log_softmax(-1)
    cold = temperature == 0
    if bool(cold.any()):
        found[cold] = Warping(0).probs(logits[cold]).log()
    return found
