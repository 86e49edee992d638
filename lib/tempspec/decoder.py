"""Speculative decoding over real KV caches: draft a chain or a tree, verify it in one pass, take back what was refused.

The output has the target's own distribution (arXiv:2211.17192, Theorem 1), whatever the drafter; at temperature 0 it is
the greedy output token for token, up to the rounding of a pass over several tokens instead of one.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import LogitsProcessorList

from lib import TenfoldError
from lib.core.generation import Step, Warping
from lib.core.scoring import padded
from lib.tempspec.drafters import Drafter, Prefix, Proposal
from lib.tempspec.metrics import DecodingStats
from lib.tempspec.processors import along_paths, check_limits, check_prompts, processors_of, special_tokens
from lib.tempspec.shape import AutoGamma, Shape, depths
from lib.tempspec.trees import TreeContext
from lib.tempspec.verify import Verification, chain, verify, verify_greedy


@dataclass(frozen=True)
class SpeculativeOutput:
    """Prompts with what follows them, padded on the right as `model.generate` does, and what it took.

    `new_tokens` counts each row's new tokens, its end-of-sequence token included; `texts` are the new tokens' text,
    where the prompts were strings.
    """

    sequences: Int[Tensor, "batch length"]
    stats: DecodingStats
    new_tokens: Int[Tensor, " batch"]
    texts: list[str] | None = None


class SpeculativeDecoder:
    """Decode with a target model and a drafter; without one it decodes plainly.

    `gamma` is the number of tokens drafted a block, "auto" for as many as pay for themselves, or any `Shape`: a
    `StaticTree` or `DynamicTree` drafts a tree. The drafter's and the target's distributions are both warped by
    temperature, top_k and top_p, which are those given here, not the generation config's. Its penalties (repetition,
    n-grams, least length, suppressed tokens, …) do hold, as do a `logits_processor`'s, on the target.

    With a `tokenizer`, prompts may be strings. Raises ValueError for an unknown gamma or a negative one.
    """

    def __init__(
        self,
        target: Any,
        drafter: Drafter | None,
        *,
        gamma: int | str | Shape = "auto",
        temperature: float | int = 1.0,
        top_k: int = 0,
        top_p: float | int = 1.0,
        logits_processor: LogitsProcessorList | None = None,
        tokenizer: Any = None,
    ) -> None:
        if isinstance(gamma, str) and gamma != "auto":
            raise ValueError(f"gamma is {gamma!r}: give a number of tokens, 'auto', or a tree")
        self.target, self.drafter, self.tokenizer = target.eval(), drafter, tokenizer
        self.warping, self.logits_processor = Warping(temperature, top_k, top_p), logits_processor
        if drafter is None:
            gamma = 0
        self.shape: Any = Shape(gamma) if isinstance(gamma, int) else AutoGamma() if gamma == "auto" else gamma
        if isinstance(self.shape, AutoGamma) and self.shape.draft_cost is None and drafter is not None:
            self.shape = replace(self.shape, draft_cost=drafter.cost(target))
        self._fresh = copy.deepcopy(self.shape)

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Int[Tensor, "batch prompt"] | str | Sequence[str],
        attention_mask: Int[Tensor, "batch prompt"] | Bool[Tensor, "batch prompt"] | None = None,
        max_new_tokens: int = 128,
        generator: torch.Generator | None = None,
        *,
        eos_token_id: int | list[int] | None = None,
        streamer: Any = None,
    ) -> SpeculativeOutput:
        """Continue prompts (padded on the left) by up to `max_new_tokens`, each row until its end-of-sequence token.

        The same state of the `generator` gives the same tokens: "auto" then starts from what it was made with, while
        without a generator it goes on learning from call to call. `streamer` is a transformers streamer, for one row.

        Raises ValueError for an empty or right-padded prompt and for lengths past a model's limit, TypeError for
        strings without a tokenizer, TenfoldError for several prompts where the target's cache (such as LoRC's) holds
        rows that advance alike.
        """
        began = time.perf_counter()
        words = not isinstance(input_ids, Tensor)
        if not isinstance(input_ids, Tensor):
            input_ids, attention_mask = self._tokenized(input_ids)
        shape = self.shape if generator is None else copy.deepcopy(self._fresh)
        decoding = _Decoding(self, shape, input_ids, attention_mask, max_new_tokens, generator, eos_token_id, streamer)
        while not decoding.done:
            decoding.block()
        decoding.stats.seconds = time.perf_counter() - began
        new, sequences = decoding.prefix.lengths - decoding.starts, decoding.sequences(input_ids)
        texts = None
        if words:
            rows = [row[input_ids.shape[1] :][:count] for row, count in zip(sequences, new.tolist(), strict=True)]
            texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return SpeculativeOutput(sequences, decoding.stats, new, texts)

    def _tokenized(self, prompts: str | Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the ids of strings and their mask, padded on the left."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if self.tokenizer is None or not all(isinstance(prompt, str) for prompt in prompts):
            raise TypeError("prompts are token ids (a tensor), or strings where the decoder was given a tokenizer")
        return padded(self.tokenizer(prompts).input_ids, side="left", device=self.target.device)


class _Decoding:
    """State of one call of `generate`."""

    def __init__(
        self,
        decoder: SpeculativeDecoder,
        shape: Shape,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        max_new_tokens: int,
        generator: torch.Generator | None,
        eos_token_id: int | list[int] | None,
        streamer: Any,
    ) -> None:
        self.target, self.drafter, self.warping = decoder.target, decoder.drafter, decoder.warping
        self.shape, self.generator, self.streamer = shape, generator, streamer
        self.stats = DecodingStats()
        self.eos, self.pad = special_tokens(self.target, eos_token_id, input_ids.device)
        valid = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        check_prompts(input_ids, valid, max_new_tokens, streamer)
        self.starts = valid.sum(dim=1)
        self.limit = self.starts + max_new_tokens
        check_limits([self.target, getattr(self.drafter, "model", None)], int(self.limit.max()))
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "eos": self.eos}
        starts = self.starts.tolist()
        made = {n: processors_of(self.target, decoder.logits_processor, start=n, **options) for n in set(starts)}
        self.processors = [made[start] for start in starts]
        self.context = TreeContext(
            self.target, len(input_ids), layers=self.drafter.layers if self.drafter is not None else ()
        )
        if self.drafter is not None:
            self.context.keep_for_rollback()
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
        nothing = Proposal.nothing(self.prefix)
        first = self._choose(nothing, step.hidden[:, -1:])
        if self.streamer is not None:
            self.streamer.put(input_ids.cpu())
        self._append(nothing.tokens, first)
        self.stats.prefill_seconds = time.perf_counter() - began

    def block(self) -> None:
        """Draft, verify, take back."""
        began = time.perf_counter()
        proposal = self._propose()
        drafted = time.perf_counter()
        valid = proposal.valid & self.running[:, None]
        if not self.context.ragged:  # such a cache takes no padding behind the drafted tokens
            proposal = proposal.first(int(valid.sum(1).max()))
            valid = valid[:, : proposal.tokens.shape[1]]
        proposal = replace(proposal, valid=valid)
        parents = chain(proposal.tokens) if proposal.parents is None else proposal.parents
        newest = self.prefix.tokens.gather(1, self.prefix.lengths[:, None] - 1)
        fed = torch.cat([newest, proposal.tokens], dim=1)
        there = torch.cat([self.running[:, None], valid], dim=1)
        if proposal.parents is None:
            step = self.context.read(fed, there)
        else:
            step = self.context.grow(fed, torch.nn.functional.pad(parents, (1, 0), value=-1), there)
        verification = self._choose(proposal, step.hidden)
        path = verification.path & self.running[:, None]
        if proposal.parents is None:
            self.context.rollback((valid & ~path).sum(1))
        else:
            self.context.settle(torch.cat([self.running[:, None], path], dim=1))
        above = depths(parents, valid)
        if step.features is not None:
            kept = torch.cat([self.running[:, None], path], dim=1)
            places = self.prefix.lengths[:, None] + torch.nn.functional.pad(above, (1, 0), value=-1)
            self._keep_features(step, places, kept)
        ended = time.perf_counter()
        self.stats.draft_seconds += drafted - began
        self.stats.target_seconds += ended - drafted
        running = self.running
        gained = self._append(proposal.tokens, replace(verification, path=path))
        self._learn(proposal, parents, replace(verification, path=path), running, gained)

    def _propose(self) -> Proposal:
        room = int((self.limit - self.prefix.lengths)[self.running].max()) - 1
        depth = min(self.shape.begin(), room)
        if not depth or self.drafter is None:
            return Proposal.nothing(self.prefix)
        return self.drafter.propose(
            self.prefix, depth, shape=self.shape, warping=self.warping, generator=self.generator
        )

    def _choose(self, proposal: Proposal, hidden: Tensor) -> Verification:
        """Verify a proposal by the target's hidden states at the newest token and the drafted ones."""
        logits, tokens, valid = self.context.logits(hidden), proposal.tokens, proposal.valid
        parents = chain(tokens) if proposal.parents is None else proposal.parents
        if any(self.processors):
            rows = zip(self.prefix.tokens, self.prefix.lengths.tolist(), strict=True)
            texts = [row[:length] for row, length in rows]
            logits = along_paths(tokens, parents, valid, logits, texts, self.processors)
        if self.warping.greedy:
            return verify_greedy(tokens, logits.argmax(-1), parents=parents, valid=valid)
        options: dict[str, Any] = {"parents": parents, "valid": valid, "certain": proposal.certain}
        return verify(tokens, proposal.laws, self.warping.probs(logits), generator=self.generator, **options)

    def _learn(
        self, proposal: Proposal, parents: Tensor, verification: Verification, running: Tensor, gained: Tensor
    ) -> None:
        """Tell the statistics and the shape what became of a block: of what was drafted past a row's end, nothing."""
        above = depths(parents, proposal.valid)
        past = (gained <= verification.accepted)[:, None] & (above >= gained[:, None])
        valid, path = proposal.valid & ~past, verification.path & ~past
        tried = ((parents == verification.end[:, None]) & valid).any(1)  # something came after the path
        self.stats.record(*(part[running] for part in (above, path.sum(1), path.sum(1) + tried, gained)))
        self.shape.observe(*(part[running] for part in (proposal.confidence, parents, valid, path)))

    def _keep_features(self, step: Step, places: Tensor, valid: Tensor) -> None:
        """Write features of the tokens fed at their places in the prefix."""
        features = self.prefix.features
        assert features is not None
        assert step.features is not None
        rows, columns = (valid & (places < features.shape[1])).nonzero(as_tuple=True)
        features[rows, places[rows, columns]] = step.features[rows, columns]

    def _append(self, tokens: Tensor, verification: Verification) -> Tensor:
        """Add the accepted tokens and the target's own after them, up to an end or the limit; return how many a row."""
        accepted = verification.accepted
        order = (~verification.path).long().argsort(dim=1, stable=True)  # the path's tokens first
        tokens = torch.cat([tokens.gather(1, order), verification.next_token[:, None]], dim=1)
        tokens = tokens.scatter(1, accepted[:, None], verification.next_token[:, None])
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
        return gained

    def sequences(self, input_ids: Tensor) -> Tensor:
        """Prompts as given, then each row's new tokens, padded on the right."""
        new = self.prefix.lengths - self.starts
        longest = int(new.max())
        places = self.starts[:, None] + torch.arange(longest, device=new.device)
        tokens = self.prefix.tokens.gather(1, places.clamp(max=self.prefix.tokens.shape[1] - 1))
        tokens = torch.where(places < self.prefix.lengths[:, None], tokens, self.pad)
        return torch.cat([input_ids, tokens], dim=1)
