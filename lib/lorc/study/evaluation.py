"""What LoRC's notebook measures of real models: loss of many plans, layers alone, answers chosen, exactness, bytes."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib import zoo
from lib.lorc import budget
from lib.lorc.cache import LowRankCache
from lib.lorc.calibration import Calibration, calibrate
from lib.lorc.compression import compress, plan
from lib.lorc.configuration import Plan, geometry
from lib.lorc.decomposition import Decomposition, decompose_model, replaced
from lib.lorc.perplexity import Document, answer_documents, document_nll
from lib.lorc.study.choices import choice_hits, choice_items


@dataclass(frozen=True)
class Setting:
    """The text that models are measured on, and how: counts of documents and rows, lengths in tokens."""

    dataset: str
    documents: int
    document_tokens: int
    calibration_rows: int
    calibration_tokens: int
    batch_size: int
    dtype: str
    device: str
    seed: int


@dataclass(frozen=True)
class Way:
    """One way of choosing ranks: `bases` are plain, whitened, or weighted by gradients too."""

    bases: str
    budget: str
    sinks: int = 0
    matrices: tuple[str, ...] = ("k", "v")
    bits: int = 16
    granularity: str | int = "joint"


WAYS = {
    "uniform": Way("plain", "uniform"),
    "progressive": Way("plain", "progressive"),
    "reversed": Way("plain", "reversed"),
    "uniform, K only": Way("plain", "uniform", matrices=("k",)),
    "uniform, V only": Way("plain", "uniform", matrices=("v",)),
    "uniform, whitened": Way("whitened", "uniform", 1),
    "progressive, whitened": Way("whitened", "progressive", 1),
    "by sensitivity": Way("weighted", "sensitivity", 1),
    "by sensitivity, per head": Way("weighted", "sensitivity", 1, granularity="head"),
}
LOW_BITS = {f"by sensitivity, {bits} bit": Way("weighted", "sensitivity", 1, bits=bits) for bits in (8, 4)}


class Testbed:
    """One real model with its held-out documents, and its bases, each made once."""

    def __init__(self, name: str, setting: Setting) -> None:
        self.setting = setting
        self.lm, self.tokenizer = zoo.load_lm(name, dtype=setting.dtype, device=setting.device)
        records: Any = zoo.load_dataset(setting.dataset, split="test").shuffle(seed=setting.seed)
        self.documents = answer_documents(
            records, self.tokenizer, limit=setting.documents, max_tokens=setting.document_tokens
        )
        self.geometry = geometry(self.lm)
        self._bases: dict[tuple[str, str | int], Decomposition] = {}

    @cached_property
    def calibration(self) -> Calibration:
        """Moments of training text, the first position of each row left out, with gradients."""
        rows, width = self.setting.calibration_rows, self.setting.calibration_tokens
        tokens = text_tokens(self.setting.dataset, self.tokenizer, rows * width)
        torch.manual_seed(self.setting.seed)
        return calibrate(self.lm, tokens.view(rows, width).split(4), skip=1, sensitivity=True)

    def bases(self, kind: str, granularity: str | int = "joint") -> Decomposition:
        """Return the plain, whitened or weighted bases."""
        key = kind, granularity
        if key not in self._bases:
            moments = None if kind == "plain" else self.calibration
            moments = replace(moments, gradients=None) if kind == "whitened" and moments else moments
            self._bases[key] = decompose_model(self.lm, granularity=granularity, calibration=moments)
        return self._bases[key]

    def plan(self, way: Way, keep: float) -> Plan:
        """Return the ranks of a way; the reversed plan is our control of the progressive one."""
        if way.budget == "reversed":
            conditions = self.bases("plain").spectra.log_condition_numbers()
            return budget.progressive(conditions, self.geometry.width, keep=keep, reverse=True)
        options: dict[str, Any] = {"granularity": way.granularity, "matrices": way.matrices}
        bases = self.bases("plain" if way.budget == "progressive" else way.bases, way.granularity)
        conditions = bases.spectra.log_condition_numbers() if way.budget == "progressive" else None
        return plan(self.lm, keep, budget=way.budget, decomposition=bases, log_conditions=conditions, **options)

    def small(self, way: Way, ranks: Plan) -> nn.Module:
        """Return a compressed model that shares every other weight with the original."""
        bases = self.bases(way.bases, way.granularity)
        options: dict[str, Any] = {"granularity": way.granularity, "sink_tokens": way.sinks, "bits": way.bits}
        return compress(twin(self.lm), ranks=ranks, decomposition=bases, **options)

    def score(self, model: nn.Module, documents: int | None = None) -> pd.DataFrame:
        """Return one row a document: summed nats and tokens of its answer."""
        chosen = self.documents[:documents]
        scores = document_nll(model, chosen, batch_size=self.setting.batch_size, progress=False)
        return pd.DataFrame({"document": range(len(chosen)), "nll": scores.nll, "tokens": scores.tokens})


testbed = lru_cache(maxsize=1)(Testbed)


def twin(model: nn.Module) -> nn.Module:
    """Copy a model's modules but none of its weights."""
    shared: dict[int, Any] = {id(each): each for each in (*model.parameters(), *model.buffers())}
    return deepcopy(model, shared)


def frontier(name: str, setting: Setting, keeps: Sequence[float], progress: Callable[..., Any] = list) -> pd.DataFrame:
    """Score every way at every kept ratio: a row a document, with the bytes that one token adds to the live cache."""
    bed = testbed(name, setting)
    jobs = (
        [(way, keep) for keep in keeps for way in WAYS]
        + [(way, sorted(keeps)[len(keeps) // 2]) for way in LOW_BITS]
        + [(next(iter(LOW_BITS)), 1.0)]
    )
    parts = [bed.score(bed.lm).assign(way="full cache", keep=1.0, bytes=bytes_per_token(bed.lm))]
    for label, keep in progress(jobs):
        way = (WAYS | LOW_BITS)[label]
        small = bed.small(way, bed.plan(way, keep))
        parts.append(bed.score(small).assign(way=label, keep=keep, bytes=bytes_per_token(small)))
    return pd.concat(parts).assign(model=name)


def layer_by_layer(
    name: str, setting: Setting, keep: float, documents: int, progress: Callable[..., Any] = list
) -> pd.DataFrame:
    """Score with single layers and with thirds truncated, uniformly: extra nats a document over the original."""
    bed = testbed(name, setting)
    layers, width, way = bed.geometry.layers, bed.geometry.width, WAYS["uniform"]
    thirds = dict(zip(("shallow", "middle", "deep"), np.array_split(range(layers), 3), strict=True))
    groups = {str(layer): [layer] for layer in range(layers)} | {key: list(map(int, v)) for key, v in thirds.items()}
    whole, parts = bed.score(bed.lm, documents)["nll"], []
    for label, chosen in progress(list(groups.items())):
        ranks = budget.only_layers(layers, width, compressed=chosen, keep=keep)
        scored = bed.score(bed.small(way, ranks), documents)
        parts.append(scored.assign(layers=label, extra=scored["nll"] - whole))
    return pd.concat(parts).assign(model=name)


def choices(
    name: str, setting: Setting, keep: float, limit: int, ways: Sequence[str], progress: Callable[..., Any] = list
) -> pd.DataFrame:
    """Say for each way and item whether the right answer is the likeliest of its candidates."""
    bed = testbed(name, setting)
    rows: Any = zoo.load_dataset("evals", split="test")
    items = choice_items(rows, bed.tokenizer, limit=limit, seed=setting.seed)
    parts = []
    for label in progress(["full cache", *ways]):
        model = bed.lm if label == "full cache" else bed.small(WAYS[label], bed.plan(WAYS[label], keep))
        hits = choice_hits(model, items).float()
        parts.append(pd.DataFrame({"item": range(len(items)), "hit": hits, "way": label, "model": name}))
    return pd.concat(parts)


def text_tokens(dataset: str, tokenizer: Any, count: int) -> Int[Tensor, " count"]:
    """Return the first tokens of a data set's training turns; raises ValueError where there are too few."""
    tokens: list[int] = []
    records: Any = zoo.load_dataset(dataset, split="train")
    for record in records:
        for turn in record["conversations"]:
            tokens += tokenizer(turn["value"], add_special_tokens=False).input_ids
        if len(tokens) >= count:
            return torch.tensor(tokens[:count])
    raise ValueError(f"the training text has only {len(tokens)} tokens: lower calibration_rows or calibration_tokens")


STEPS = 8  # tokens decoded one by one where a model is compared with itself


def differences(model: nn.Module, plan: Plan, documents: Sequence[Document]) -> pd.DataFrame:
    """Compare logits on each document; return the largest absolute difference a document and way.

    `prefill`, `decode`: the model that caches latents against the one with replaced weights, in one pass and token by
    token. `full`: latents of the whole basis, which sink tokens keep, against the original.
    """
    bases = decompose_model(model)
    small = compress(twin(model), ranks=plan, decomposition=bases)
    whole = compress(twin(model), ranks=plan, decomposition=bases, sink_tokens=max(len(d.tokens) for d in documents))
    rows = []
    for number, document in enumerate(documents):
        original = logits(model, document.tokens)
        with replaced(model, plan, decomposition=bases):
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
