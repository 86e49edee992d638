"""Drafters that run a model token by token (arXiv:2410.10141 drafts with a 68 M Llama)."""

from typing import Any

import torch
from torch import Tensor

from lib.tempspec.context import Context
from lib.tempspec.drafting import KeepGoing, Prefix, Proposal
from lib.tempspec.heads import reduced_logits, widen
from lib.tempspec.warping import Warping, draw


class Autoregressive:
    """Drafting one token after another: what `ModelDrafter` and `FeatureDrafter` share."""

    model: Any
    head: Any
    layers: tuple[int, ...] = ()
    _vocab: int

    def fingerprint(self) -> list[Any]:
        """What its drafts depend on: the model; not what its cache holds of the last prompt."""
        return [self.model]

    def _read(self, prefix: Prefix) -> Tensor:
        """Read what the prefix has gained; return the last hidden state of each row [batch, hidden]."""
        raise NotImplementedError

    def _feed(self, tokens: Tensor, depth: int) -> Tensor:
        """Read one drafted token of each row, the `depth`-th of this block; return the hidden states."""
        raise NotImplementedError

    @torch.inference_mode()
    def propose(
        self,
        prefix: Prefix,
        gamma: int,
        *,
        warping: Warping,
        generator: torch.Generator | None = None,
        keep_going: KeepGoing | None = None,
    ) -> Proposal:
        """Draft up to gamma tokens, each drawn from the drafter's own distribution after the same warping."""
        hidden, tokens, rows, confidence = self._read(prefix), [], [], []
        for depth in range(1, gamma + 1):
            logits, token_ids = reduced_logits(self.head, hidden)
            q = warping.probs(logits)
            choice = q.argmax(-1) if warping.greedy else draw(q, generator=generator)
            confidence.append(logits.float().softmax(-1).amax(-1) if warping.greedy else q.amax(-1))
            tokens.append(choice if token_ids is None else token_ids[choice])
            rows.append(q if token_ids is None else widen(q, token_ids, self._vocab))
            if depth == gamma or (keep_going and not keep_going([float(c.mean()) for c in confidence])):
                break
            hidden = self._feed(tokens[-1], depth)
        drafted = torch.stack(tokens, dim=1)
        full = torch.full_like(prefix.lengths, drafted.shape[1])
        return Proposal(drafted, torch.stack(rows, dim=1), full, torch.stack(confidence, dim=1))


class ModelDrafter(Autoregressive):
    """Any causal language model with the target's tokenizer, with a KV cache of its own.

    Its head may be a `ReducedHead` (see `truncate`). Raises ValueError where its vocabulary is larger than the target's
    (their tokenizers differ).
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.head = model.get_output_embeddings()

    def begin(self, target: Any, batch: int) -> None:
        """Start with an empty cache."""
        self._vocab = target.config.vocab_size
        if self.model.config.vocab_size != self._vocab:
            raise ValueError(
                f"the drafter's vocabulary has {self.model.config.vocab_size} tokens, the target's {self._vocab}: "
                "use a drafter with the target's tokenizer"
            )
        self._context = Context(self.model, batch)
        self._verified = torch.zeros_like(self._context.lengths)  # prefix tokens in the cache at the last proposal
        self._drafted: list[Tensor] = []  # and the drafted tokens read after them

    def _read(self, prefix: Prefix) -> Tensor:
        self._keep_accepted(prefix)
        positions = prefix.since(self._context.lengths)
        tokens = prefix.tokens.gather(1, positions.clamp(min=0))
        self._verified, self._drafted = prefix.lengths.clone(), []
        return self._context.extend(tokens, positions >= 0).hidden[:, -1]

    def _keep_accepted(self, prefix: Prefix) -> None:
        """Take back drafted tokens that were refused; the newest token is always left to be read."""
        if not self._drafted:
            return
        drafted = torch.stack(self._drafted, dim=1)
        places = self._verified[:, None] + torch.arange(drafted.shape[1], device=drafted.device)
        same = prefix.tokens.gather(1, places.clamp(max=prefix.tokens.shape[1] - 1)) == drafted
        accepted = (same & (places < prefix.lengths[:, None] - 1)).cumprod(dim=1).sum(dim=1)
        self._context.forget(drafted.shape[1] - accepted)

    def _feed(self, tokens: Tensor, depth: int) -> Tensor:
        self._drafted.append(tokens)
        return self._context.extend(tokens[:, None]).hidden[:, -1]
