"""Speculative decoding over real KV caches: draft a block, verify it in one pass, roll back what was refused.

The output has the target's own distribution (arXiv:2211.17192, Theorem 1), whatever the drafter; at temperature 0 it is
the greedy output token for token, up to the rounding of a pass over several tokens instead of one.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lib import TenfoldError
from lib.core.generation import Context, Step, Warping, draw
from lib.tempspec.block_length import AutoGamma, FixedGamma
from lib.tempspec.drafters import Drafter, Prefix, Proposal
from lib.tempspec.verify import Verification, verify, verify_greedy


@dataclass
class DecodingStats:
    """Counts over all rows and blocks; `drafted[i]`, `tested[i]`, `accepted[i]` are those of draft position i.

    A token is tested when all before it in its block were accepted; tokens after a refusal are drafted in vain.
    Seconds are wall-clock; the target's first pass over the prompts is `prefill_seconds` and no block.
    """

    blocks: int = 0
    rounds: int = 0
    tokens: int = 0
    drafted: list[int] = field(default_factory=list)
    tested: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    lengths: dict[int, int] = field(default_factory=dict)  # rounds by tokens drafted in them
    prefill_seconds: float = 0.0
    draft_seconds: float = 0.0
    target_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def acceptance(self) -> float:
        """Return accepted over drafted tokens (those after a refusal count as drafted)."""
        return sum(self.accepted) / max(sum(self.drafted), 1)

    @property
    def conditional_acceptance(self) -> float:
        """Return accepted over tested tokens: the mean chance of a drafted token whose predecessors were accepted."""
        return sum(self.accepted) / max(sum(self.tested), 1)

    @property
    def by_position(self) -> list[float]:
        """Return the conditional acceptance at each draft position."""
        return [hits / max(seen, 1) for hits, seen in zip(self.accepted, self.tested, strict=True)]

    @property
    def block_efficiency(self) -> float:
        """Return tokens gained per block of one row, the target's own included (tau)."""
        return 1 + sum(self.accepted) / max(self.blocks, 1)

    def record(self, lengths: Int[Tensor, " rows"], accepted: Int[Tensor, " rows"]) -> None:
        """Count one round of blocks: tokens drafted and accepted in each row still running."""
        self.rounds += 1
        self.blocks += len(lengths)
        longest = int(lengths.max())
        self.lengths[longest] = self.lengths.get(longest, 0) + 1
        depth = torch.arange(longest, device=lengths.device)
        counts = {
            "drafted": (depth < lengths[:, None]).sum(0),
            "tested": (depth < torch.minimum(accepted + 1, lengths)[:, None]).sum(0),
            "accepted": (depth < accepted[:, None]).sum(0),
        }
        for name, new in counts.items():
            total = getattr(self, name)
            total += [0] * (longest - len(total))
            total[:longest] = [a + b for a, b in zip(total, new.tolist(), strict=False)]

    def modelled_seconds(self, draft: float, target: dict[int, float]) -> float:
        """Return seconds of these rounds by the cost model: `draft` a drafted token, `target[n]` a pass of n tokens."""
        return sum(count * (drafted * draft + target[drafted + 1]) for drafted, count in self.lengths.items())


@dataclass(frozen=True)
class SpeculativeOutput:
    """Prompts with what follows them, padded on the right as `model.generate` does, and what it took.

    `new_tokens` counts each row's new tokens, its end-of-sequence token included.
    """

    sequences: Int[Tensor, "batch length"]
    stats: DecodingStats
    new_tokens: Int[Tensor, " batch"]


class SpeculativeDecoder:
    """Decode with a target model and a drafter.

    `gamma` is the number of tokens drafted a block, or "auto" for as many as pay for themselves; the drafter's and the
    target's distributions are both warped by temperature, top_k and top_p. Without a drafter it decodes plainly.
    Logits processors of the target's generation config, such as repetition penalties, are not applied.
    """

    def __init__(
        self,
        target: Any,
        drafter: Drafter | None,
        *,
        gamma: int | str = "auto",
        temperature: float | int = 1.0,
        top_k: int = 0,
        top_p: float | int = 1.0,
    ) -> None:
        if isinstance(gamma, str) and gamma != "auto":
            raise ValueError(f"gamma is {gamma!r}: give a number of tokens, or 'auto'")
        self.target, self.drafter = target.eval(), drafter
        self.warping = Warping(temperature, top_k, top_p)
        if drafter is None:
            gamma = 0
        self.block_length = AutoGamma() if gamma == "auto" else FixedGamma(int(gamma))

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Int[Tensor, "batch prompt"],
        attention_mask: Int[Tensor, "batch prompt"] | Bool[Tensor, "batch prompt"] | None = None,
        max_new_tokens: int = 128,
        generator: torch.Generator | None = None,
        *,
        eos_token_id: int | list[int] | None = None,
        streamer: Any = None,
    ) -> SpeculativeOutput:
        """Continue prompts (padded on the left) by up to `max_new_tokens`, each row until its end-of-sequence token.

        `streamer` is a transformers streamer, for one row only. Raises ValueError for an empty or right-padded prompt,
        TenfoldError for several prompts where the target's cache (such as LoRC's) holds rows that advance alike.
        """
        began = time.perf_counter()
        decoding = _Decoding(self, input_ids, attention_mask, max_new_tokens, generator, eos_token_id, streamer)
        while not decoding.done:
            decoding.block()
        decoding.stats.seconds = time.perf_counter() - began
        new_tokens = decoding.prefix.lengths - decoding.starts
        return SpeculativeOutput(decoding.sequences(input_ids), decoding.stats, new_tokens)


class _Decoding:
    """State of one call of `generate`."""

    def __init__(
        self,
        decoder: SpeculativeDecoder,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        max_new_tokens: int,
        generator: torch.Generator | None,
        eos_token_id: int | list[int] | None,
        streamer: Any,
    ) -> None:
        self.target, self.drafter, self.warping = decoder.target, decoder.drafter, decoder.warping
        self.policy, self.generator, self.streamer = decoder.block_length, generator, streamer
        self.stats = DecodingStats()
        self.eos, self.pad = _special_tokens(self.target, eos_token_id, input_ids.device)
        valid = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        _check(input_ids, valid, max_new_tokens, streamer)
        self.starts = valid.sum(dim=1)
        self.limit = self.starts + max_new_tokens
        layers = self.drafter.layers if self.drafter is not None else ()
        self.context = Context(self.target, len(input_ids), layers=layers)
        if not self.context.ragged and len(input_ids) > 1:
            raise TenfoldError("this model's cache holds rows that advance alike: decode one prompt at a time.")
        self.running = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        self._prefill(input_ids, valid, max_new_tokens)

    @property
    def done(self) -> bool:
        """Whether every row has ended."""
        return not bool(self.running.any())

    def _prefill(self, input_ids: Tensor, valid: Tensor, max_new_tokens: int) -> None:
        """Read the prompts and draw each row's first token."""
        began = time.perf_counter()
        batch, width = input_ids.shape
        tokens = input_ids.new_zeros(batch, width + max_new_tokens + 1)
        places = (valid.cumsum(1) - 1).clamp(min=0)
        tokens.scatter_(1, torch.where(valid, places, tokens.shape[1] - 1), input_ids)
        self.prefix = Prefix(tokens, self.starts.clone())
        if self.drafter is not None:
            self.drafter.begin(self.target, batch)
        step = self.context.read(input_ids, valid)
        if step.features is not None:
            self.prefix.features = step.features.new_zeros(batch, tokens.shape[1], step.features.shape[-1])
            self._keep_features(step, self.context.mask.cumsum(1) - 1, valid)
        logits = self.context.logits(step.hidden[:, -1:])
        first = logits.argmax(-1) if self.warping.greedy else draw(self.warping.probs(logits), generator=self.generator)
        if self.streamer is not None:
            self.streamer.put(input_ids.cpu())
        self._append(first, torch.zeros_like(self.starts))
        self.stats.prefill_seconds = time.perf_counter() - began

    def block(self) -> None:
        """Draft, verify, roll back."""
        began = time.perf_counter()
        proposal = self._propose()
        drafted = time.perf_counter()
        lengths = torch.where(self.running, proposal.lengths, 0)
        if not self.context.ragged:  # such a cache takes no padding behind the drafted tokens
            proposal = proposal.first(int(lengths.max()))
        verification, step = self._verify(proposal, lengths)
        accepted = torch.where(self.running, verification.accepted, 0)
        self.context.rollback(lengths - accepted)
        if step.features is not None:
            places = self.prefix.lengths[:, None] - 1 + torch.arange(step.hidden.shape[1], device=accepted.device)
            self._keep_features(step, places, self.running[:, None].expand_as(places))
        self.stats.record(lengths[self.running], accepted[self.running])
        ended = time.perf_counter()
        self.stats.draft_seconds += drafted - began
        self.stats.target_seconds += ended - drafted
        self.policy.observe(
            confidence=proposal.confidence[self.running],
            lengths=lengths[self.running],
            accepted=accepted[self.running],
            draft_seconds=drafted - began,
            target_seconds=ended - drafted,
        )
        self._append(torch.cat([proposal.tokens, verification.next_token[:, None]], dim=1), accepted)

    def _propose(self) -> Proposal:
        room = int((self.limit - self.prefix.lengths)[self.running].max()) - 1
        gamma = min(self.policy.begin(), room)
        if gamma and self.drafter is not None:
            return self.drafter.propose(
                self.prefix, gamma, warping=self.warping, generator=self.generator, keep_going=self.policy.keep_going
            )
        tokens = self.prefix.tokens[:, :0]
        none = torch.zeros(tokens.shape, device=tokens.device)
        return Proposal(tokens, none[..., None], torch.zeros_like(self.prefix.lengths), none)

    def _verify(self, proposal: Proposal, lengths: Tensor) -> tuple[Verification, Step]:
        """Run the target over the newest token and the drafted ones."""
        newest = self.prefix.tokens.gather(1, self.prefix.lengths[:, None] - 1)
        fed = torch.cat([newest, proposal.tokens], dim=1)
        depth = torch.arange(fed.shape[1], device=fed.device)
        valid = (depth <= lengths[:, None]) & self.running[:, None]
        step = self.context.read(fed, valid)
        logits = self.context.logits(step.hidden)
        if self.warping.greedy:
            return verify_greedy(proposal.tokens, logits.argmax(-1), lengths=lengths), step
        probs = self.warping.probs(logits)
        if not proposal.tokens.shape[1]:
            next_token = draw(probs[:, 0], generator=self.generator)
            return Verification(torch.zeros_like(lengths), next_token), step
        options: dict[str, Any] = {"lengths": lengths, "generator": self.generator}
        return verify(proposal.tokens, proposal.probs, probs, **options), step

    def _keep_features(self, step: Step, places: Tensor, valid: Tensor) -> None:
        """Write features of the tokens fed at their places in the prefix."""
        features = self.prefix.features
        assert features is not None
        assert step.features is not None
        rows, columns = (valid & (places < features.shape[1])).nonzero(as_tuple=True)
        features[rows, places[rows, columns]] = step.features[rows, columns]

    def _append(self, tokens: Tensor, accepted: Tensor) -> None:
        """Add the accepted tokens and the target's own (column `accepted` + 1 of them), up to an end or the limit."""
        tokens = tokens.scatter(1, accepted[:, None], tokens[:, -1:])  # the target's token comes right after
        depth = torch.arange(tokens.shape[1], device=tokens.device)
        ends = torch.isin(tokens, self.eos) & (depth <= accepted[:, None])
        first_end = torch.where(ends.any(1), ends.int().argmax(1), tokens.shape[1])
        gained = torch.minimum(torch.minimum(accepted, first_end) + 1, self.limit - self.prefix.lengths)
        gained = torch.where(self.running, gained, 0)
        new = depth < gained[:, None]
        rows, columns = new.nonzero(as_tuple=True)
        self.prefix.tokens[rows, self.prefix.lengths[rows] + columns] = tokens[rows, columns]
        self.prefix.lengths = self.prefix.lengths + gained
        self.stats.tokens += int(gained.sum())
        if self.streamer is not None:
            self.streamer.put(tokens[0, : int(gained[0])].cpu())
        ended = (ends & new).any(1) | (self.prefix.lengths >= self.limit)
        self.running = self.running & ~ended
        if self.streamer is not None and self.done:
            self.streamer.end()

    def sequences(self, input_ids: Tensor) -> Tensor:
        """Prompts as given, then each row's new tokens, padded on the right."""
        new = self.prefix.lengths - self.starts
        longest = int(new.max())
        places = self.starts[:, None] + torch.arange(longest, device=new.device)
        tokens = self.prefix.tokens.gather(1, places.clamp(max=self.prefix.tokens.shape[1] - 1))
        tokens = torch.where(places < self.prefix.lengths[:, None], tokens, self.pad)
        return torch.cat([input_ids, tokens], dim=1)


def _special_tokens(target: Any, eos: int | list[int] | None, device: torch.device) -> tuple[Tensor, int]:
    """End-of-sequence ids as a tensor (maybe empty), and the id that pads ended rows."""
    config = target.generation_config
    eos = config.eos_token_id if eos is None else eos
    ids = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    pad = config.pad_token_id if config.pad_token_id is not None else (ids or [0])[0]
    return torch.tensor(ids, dtype=torch.long, device=device), int(pad)


def _check(input_ids: Tensor, valid: Tensor, max_new_tokens: int, streamer: Any) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: ask for at least 1")
    if not input_ids.shape[1] or not bool(valid[:, -1].all()):
        raise ValueError("a prompt is empty or padded on the right: pad on the left (tokenizer.padding_side = 'left')")
    if streamer is not None and len(input_ids) != 1:
        raise ValueError("a streamer can follow one prompt only")
