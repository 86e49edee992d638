"""On-policy sampling: k responses a prompt from a causal language model, with a KV cache and inverse-CDF draws.

A prompt is read once and its cache is shared by its k rows. Every row has its own stream of uniform numbers, so what a
row says does not depend on the rows that share its batch (up to rounding of the forward pass).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from lib import TenfoldError
from lib.preference.prompts import Prompt, encoded

BLOCK = 256  # tokens summed before one is looked for
SPARE = 4  # finished rows leave the batch when they are at least one in so many


@dataclass(frozen=True)
class Response:
    """What a policy said: token ids (with the end token where it said one), text, and log-probability in nats.

    `log_prob` is that of the law it was drawn from (at its temperature), as seen while decoding; in 16-bit numbers it
    differs from a teacher-forced one by some tenths of a nat. `finished`: whether it ended by itself.
    """

    tokens: tuple[int, ...]
    text: str
    log_prob: float
    finished: bool


def sample(
    policy: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    k: int = 1,
    *,
    max_new_tokens: int = 64,
    temperature: float | int = 1.0,
    batch_size: int = 96,
    seed: int = 0,
    progress: bool = True,
) -> list[list[Response]]:
    """Draw k responses to each prompt (a question, put into the chat template, or token ids); temperature 0 is greedy.

    `batch_size` counts rows (prompts x k). Raises TenfoldError for empty prompts, prompts that leave no room in the
    context, or settings that draw nothing.
    """
    if k < 1 or max_new_tokens < 1 or batch_size < 1 or not 0 <= temperature < float("inf"):
        raise TenfoldError(
            f"k = {k}, max_new_tokens = {max_new_tokens}, batch_size = {batch_size} and temperature = {temperature} "
            "draw nothing: the first three must be at least 1, the temperature 0 (greedy) or positive."
        )
    ids = encoded(prompts, tokenizer, context=_context(policy), room=max_new_tokens)
    drawn = 1 if temperature == 0 else k  # greedy responses are all the same
    uniforms = _uniforms(len(ids), drawn, max_new_tokens, seed)
    found: dict[int, list[Response]] = {}
    was_training = policy.training
    policy.eval()
    try:
        with tqdm(total=len(ids) * drawn, desc="sample", unit="row", disable=not progress, mininterval=1.0) as bar:
            for chosen in _batches(ids, max(1, batch_size // drawn)):
                rows = _Rows(policy, [ids[i] for i in chosen], uniforms[chosen], temperature, _stops(policy, tokenizer))
                for index, responses in zip(chosen, rows.decode(max_new_tokens, tokenizer), strict=True):
                    found[index] = responses * (k // drawn)
                bar.update(len(chosen) * drawn)
    finally:
        policy.train(was_training)
    return [found[index] for index in range(len(ids))]


def _context(policy: Any) -> int | None:
    return getattr(policy.config, "max_position_embeddings", None)


def _stops(policy: Any, tokenizer: Any) -> list[int]:
    """Token ids that end a response: the generation config's, else the tokenizer's."""
    ends = getattr(getattr(policy, "generation_config", None), "eos_token_id", None)
    ends = tokenizer.eos_token_id if ends is None else ends
    return [ends] if isinstance(ends, int) else list(ends or [])


def _uniforms(prompts: int, k: int, steps: int, seed: int) -> Float[Tensor, "prompts k steps"]:
    """Uniform numbers of every row, by prompt: the first prompts' do not move when more prompts are added."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(prompts, k, steps, dtype=torch.float64, generator=generator)


def _batches(ids: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Indices of prompts in batches of similar length."""
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    return (order[i : i + size] for i in range(0, len(order), size))


class _Rows:
    """A batch while it is decoded: the cache, and which rows still speak."""

    def __init__(
        self, policy: Any, prompts: list[list[int]], uniforms: Tensor, temperature: float | int, stops: list[int]
    ) -> None:
        self.policy, self.temperature, self.k = policy, temperature, uniforms.shape[1]
        self.device = next(policy.parameters()).device
        self.uniforms = uniforms.flatten(0, 1).to(self.device)  # [rows, steps]
        self.prompts = prompts
        self.stops = torch.tensor(stops, dtype=torch.long, device=self.device)
        self.alive = torch.arange(len(self.uniforms), device=self.device)  # rows still in the batch
        self.mask = torch.empty(0)

    @torch.inference_mode()
    def decode(self, steps: int, tokenizer: Any) -> list[list[Response]]:
        rows = len(self.uniforms)
        tokens = torch.full((rows, steps), -1, dtype=torch.long, device=self.device)
        log_probs = torch.zeros(rows, dtype=torch.float64, device=self.device)
        ended = torch.zeros(rows, dtype=torch.bool, device=self.device)
        logits = self._read_prompts()
        for step in range(steps):
            drawn, log_prob = draw(logits, self.uniforms[self.alive, step], temperature=self.temperature)
            speaks = ~ended[self.alive]
            tokens[self.alive[speaks], step] = drawn[speaks]
            log_probs[self.alive[speaks]] += log_prob[speaks].double()
            ended[self.alive] |= torch.isin(drawn, self.stops)
            if step + 1 == steps or bool(ended.all()):
                break
            drawn = self._let_go(drawn, ~ended[self.alive])
            logits = self._read(drawn)
        return self._responses(tokens, log_probs, ended, tokenizer)

    def _read_prompts(self) -> Float[Tensor, "rows vocab"]:
        """Read each prompt once, padded on the left, and give its cache to its k rows."""
        longest = max(map(len, self.prompts))
        pad = [[0] * (longest - len(p)) + list(p) for p in self.prompts]
        self.mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in self.prompts], device=self.device)
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        ids = torch.tensor(pad, device=self.device)
        masked = {} if bool(self.mask.all()) else {"attention_mask": self.mask}
        output = self.policy(input_ids=ids, position_ids=positions, use_cache=True, logits_to_keep=1, **masked)
        self.cache = cast(Any, output.cache)
        self.cache.batch_repeat_interleave(self.k)
        self.mask = self.mask.repeat_interleave(self.k, dim=0)
        return output.logits[:, -1].repeat_interleave(self.k, dim=0)

    def _let_go(self, drawn: Tensor, speaks: Tensor) -> Tensor:
        """Take rows that have ended out of the batch once they are many; return the tokens of those that stay."""
        if int((~speaks).sum()) * SPARE < len(speaks):
            return drawn
        self.alive, self.mask = self.alive[speaks], self.mask[speaks]
        self.cache.batch_select_indices(speaks.nonzero().squeeze(-1))
        return drawn[speaks]

    def _read(self, drawn: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocab"]:
        self.mask = nn.functional.pad(self.mask, (0, 1), value=1)
        masked = {} if bool(self.mask.all()) else {"attention_mask": self.mask}
        positions = self.mask.sum(1, keepdim=True) - 1
        output = self.policy(
            input_ids=drawn[:, None], position_ids=positions, cache=self.cache, use_cache=True, **masked
        )
        return output.logits[:, -1]

    def _responses(self, tokens: Tensor, log_probs: Tensor, ended: Tensor, tokenizer: Any) -> list[list[Response]]:
        said = [[token for token in row if token >= 0] for row in tokens.tolist()]
        texts = tokenizer.batch_decode(said, skip_special_tokens=True)
        rows = [
            Response(tuple(row), text, log_prob, end)
            for row, text, log_prob, end in zip(said, texts, log_probs.tolist(), ended.tolist(), strict=True)
        ]
        return [rows[i : i + self.k] for i in range(0, len(rows), self.k)]


def draw(
    logits: Float[Tensor, "rows vocab"], uniform: Float[Tensor, " rows"], *, temperature: float | int = 1.0
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Token of each row at the given quantile of softmax(logits / T), and its log-probability; T = 0 takes the largest.

    The inverse of the cumulative sum is searched block by block: one pass over the vocabulary, several times faster
    than `torch.multinomial`. A token of probability 0 is never drawn.
    """
    logits = logits.float()
    if temperature == 0:
        largest = logits.argmax(-1)
        return largest, torch.zeros_like(logits[:, 0])
    if temperature != 1:
        logits = logits / temperature
    weights = (logits - logits.amax(-1, keepdim=True)).exp_()
    weights = nn.functional.pad(weights, (0, -weights.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    blocks = weights.sum(-1, dtype=torch.float64).cumsum(-1)
    total = blocks[:, -1:]
    block, left = _search(blocks, uniform[:, None].to(total) * total)
    inside = weights[torch.arange(len(weights), device=weights.device), block[:, 0]]
    place, _ = _search(inside.double().cumsum(-1), left)
    token = (block * BLOCK + place).squeeze(-1)
    drawn_weight = inside.gather(-1, place).squeeze(-1)
    return token, (drawn_weight.log() - total.squeeze(-1).log()).to(logits.dtype)


def _search(cumulative: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """First entry whose cumulative sum exceeds the level (so never one of weight 0), and how far into it that is."""
    total = cumulative[..., -1:]
    level = torch.minimum(level, total.nextafter(torch.zeros_like(total)))
    place = torch.searchsorted(cumulative, level, right=True)
    before = torch.where(place > 0, cumulative.gather(-1, (place - 1).clamp(min=0)), 0.0)
    return place, (level - before).clamp(min=0)
