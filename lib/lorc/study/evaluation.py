"""What is measured of a compressed model besides its loss: exactness, bytes of the live cache, ranking of answers.

A ranking item is one row of an instruction task with its own answer and the answers of other rows of the same task, so
that form and style give nothing away. Chance is 1 / candidates.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from lib.core.scoring import by_length
from lib.lorc.cache import LowRankCache
from lib.lorc.compression import compress
from lib.lorc.configuration import Plan
from lib.lorc.decomposition import replaced
from lib.lorc.perplexity import Document, token_log_likelihoods
from lib.zoo.dialogues import prompt_ids

STEPS = 8  # tokens decoded one by one where a model is compared with itself


def differences(model: nn.Module, plan: Plan, documents: Sequence[Document]) -> pd.DataFrame:
    """Compare logits on each document; return the largest absolute difference a document and way.

    `prefill`, `decode`: the model that caches latents against the one with replaced weights, in one pass and token by
    token. `full`: latents of the whole basis, which sink tokens keep, against the original.
    """
    small = compress(deepcopy(model), ranks=plan)
    whole = compress(deepcopy(model), ranks=plan, sink_tokens=max(len(d.tokens) for d in documents))
    rows = []
    for number, document in enumerate(documents):
        original = logits(model, document.tokens)
        with replaced(model, plan):
            reference = logits(model, document.tokens)
        ways = {
            "prefill": logits(small, document.tokens) - reference,
            "decode": logits(small, document.tokens, steps=STEPS) - reference,
            "full": logits(whole, document.tokens) - original,
        }
        rows += [(number, way, float(difference.abs().max())) for way, difference in ways.items()]
    return pd.DataFrame(rows, columns=["document", "way", "difference"])


@torch.inference_mode()
def logits(model: nn.Module, tokens: Int[Tensor, " tokens"], *, steps: int = 0) -> Float[Tensor, "tokens vocab"]:
    """Return logits at every position, the last `steps` tokens read one by one from the cache."""
    network, ids = cast(Any, model), tokens[None].to(next(model.parameters()).device)
    if not steps:
        return network(ids, use_cache=False).logits[0]
    output = network(ids[:, :-steps], use_cache=True)
    parts, cache = [output.logits[0]], output.cache
    for place in range(ids.shape[1] - steps, ids.shape[1]):
        parts.append(network(ids[:, place : place + 1], cache=cache).logits[0])
    return torch.cat(parts)


def with_exact_norms(model: nn.Module) -> nn.Module:
    """Replace transformers' RMSNorms, which round to float32 even in a float64 model, by torch's, in place."""
    for name, norm in list(model.named_modules()):
        if type(norm).__name__.endswith("RMSNorm"):
            weight = cast(Tensor, norm.weight)
            exact = nn.RMSNorm(weight.shape, eps=cast(float, norm.variance_epsilon), dtype=weight.dtype)
            exact.weight = cast(nn.Parameter, weight)
            model.set_submodule(name, exact)
    return model


def held_bytes(cache: Any) -> int:
    """Return the bytes that torch holds for a cache, compressed or not."""
    if isinstance(cache, LowRankCache):
        return cache.held_bytes()
    return sum(state.untyped_storage().nbytes() for layer in cache.layers for state in (layer.keys, layer.values))


@torch.inference_mode()
def bytes_after(model: nn.Module, tokens: Int[Tensor, " tokens"]) -> int:
    """Return the bytes of the cache that a model fills by reading tokens."""
    ids = tokens[None].to(next(model.parameters()).device)
    return held_bytes(cast(Any, model).get_decoder()(ids, use_cache=True).cache)


def bytes_per_token(model: nn.Module) -> float:
    """Return the bytes that one token more adds to a model's cache."""
    counts = 32, 48
    few, many = (bytes_after(model, torch.ones(count, dtype=torch.long)) for count in counts)
    return (many - few) / (counts[1] - counts[0])


@dataclass(frozen=True)
class RankingItem:
    """One question as a document per candidate answer; the right one is at `right`."""

    task: str
    candidates: tuple[Document, ...]
    right: int


def ranking_items(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: Any,
    *,
    limit: int,
    candidates: int = 4,
    max_tokens: int = 160,
    longest_answer: int = 40,
    seed: int = 0,
) -> list[RankingItem]:
    """Make up to `limit` items, one a task in turn, from rows `{task, instruction, input, ideals}`.

    Answers are single lines of at most `longest_answer` characters, prompts with their answer at most `max_tokens`
    tokens. Raises ValueError where no task has as many different answers as there are candidates.
    """
    tasks: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        answer = row["ideals"][0].strip() if row["ideals"] else ""
        if answer and len(answer) <= longest_answer and "\n" not in answer:
            tasks.setdefault(row["task"], []).append(row)
    rng = np.random.default_rng(seed)
    items: list[RankingItem] = []
    for place in range(max(map(len, tasks.values()), default=0)):
        for members in tasks.values():
            if place < len(members) and len(items) < limit:
                item = _item(members[place], members, tokenizer, candidates, max_tokens, rng)
                items += [item] if item else []
    if not items:
        raise ValueError(f"no task has {candidates} different short answers and a prompt of {max_tokens} tokens")
    return items


def _item(row, members, tokenizer, candidates: int, max_tokens: int, rng: np.random.Generator) -> RankingItem | None:
    right = row["ideals"][0].strip()
    accepted = {answer.strip() for answer in row["ideals"]}
    others = sorted({member["ideals"][0].strip() for member in members} - accepted)
    if len(others) < candidates - 1:
        return None
    answers = [right, *(others[i] for i in rng.permutation(len(others))[: candidates - 1])]
    order = rng.permutation(candidates)
    context = prompt_ids(tokenizer, row["input"], system=row["instruction"])
    documents = []
    for i in order:
        tokens = torch.tensor(context + tokenizer(answers[i], add_special_tokens=False).input_ids)
        documents.append(Document(tokens=tokens, scored=torch.arange(len(tokens)) >= len(context)))
    if max(len(document.tokens) for document in documents) > max_tokens:
        return None
    return RankingItem(row["task"], tuple(documents), int(np.flatnonzero(order == 0)[0]))


def ranking_hits(
    model: nn.Module, items: Sequence[RankingItem], *, batch_items: int = 8, progress: bool = True
) -> Bool[Tensor, " items"]:
    """Say for each item whether its right answer has the highest mean log-likelihood per token.

    Raises ValueError where there is no item.
    """
    if not items:
        raise ValueError("there is no item to rank: make some with ranking_items")
    hits = torch.zeros(len(items), dtype=torch.bool)
    batches = by_length([len(item.candidates[0].tokens) for item in items], rows=batch_items)
    for chosen in tqdm(batches, desc="ranking", disable=not progress, leave=False):
        values = token_log_likelihoods(model, [document for i in chosen for document in items[i].candidates])
        means = iter(float(each.double().mean()) for each in values)
        for i in chosen:
            scores = [next(means) for _ in items[i].candidates]
            hits[i] = int(np.argmax(scores)) == items[i].right
    return hits
