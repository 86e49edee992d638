"""Drafting from the target's own hidden states, after EAGLE (arXiv:2401.15077, 2503.01840): an extension.

One decoder layer reads, at each position, the token's embedding and the target's hidden states at the newest verified
token before it. Within a block these grow stale: `lag` says by how many tokens, and each lag has its own map.

The layer starts as the target's last one, and the maps as the ridge regression of what that layer reads in the target:
so the drafter is a good one before its first gradient step.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from lib.tempspec.answers import TeachingBatch
from lib.tempspec.drafters import AutoregressiveDrafter, Prefix
from lib.tempspec.modeling import ReducedHead
from lib.tempspec.trees import TreeContext

DAMPING = 1e-3  # of the ridge regression, of the mean of the inputs' second moments


class FeatureModel(nn.Module):
    """The network of a `FeatureDrafter`: embeddings and features fused into one decoder layer, and a reduced head.

    `layers` are the target's hidden states it sees. Embeddings, last layer and head start as the target's, the first
    stay so, and the head too unless it is `own_head`; `fit_maps` gives the maps their start. Features older than
    `longest_lag` tokens go through the last map.
    """

    def __init__(
        self, target: Any, *, layers: tuple[int, ...], token_ids: Int[Tensor, " kept"], longest_lag: int = 3,
        own_head: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        config: Any = target.config
        width = config.hidden_size
        self.config, self.layers, self.longest_lag = config, layers, longest_lag
        eps = getattr(config, "rms_norm_eps", 1e-5)
        self.embeddings = nn.Embedding.from_pretrained(target.get_input_embeddings().weight.detach().float())
        self.norms = nn.ModuleList([nn.RMSNorm(width, eps=eps) for _ in layers])
        self.embedding_norm = nn.RMSNorm(width, eps=eps)
        maps = [nn.Linear(width * (len(layers) + 1), width, bias=False) for _ in range(longest_lag)]
        self.maps = nn.ModuleList(maps)
        self.decoder = _one_layer(target)
        weight = target.get_output_embeddings().weight.detach().float()
        self.head = ReducedHead(weight[token_ids], token_ids, config.vocab_size)
        self.head.weight.requires_grad_(own_head)
        self.to(target.device)

    def map_inputs(
        self, tokens: Int[Tensor, "batch length"], features: Float[Tensor, "batch length features"]
    ) -> Float[Tensor, "batch length inputs"]:
        """Return embeddings beside features, each normalised: what the maps take."""
        parts = features.to(self.embedding_norm.weight.dtype).chunk(len(self.layers), dim=-1)
        seen = [norm(part) for norm, part in zip(self.norms, parts, strict=True)]
        return torch.cat([self.embedding_norm(self.embeddings(tokens)), *seen], dim=-1)

    def get_output_embeddings(self) -> ReducedHead:
        """Return the head, as language models do."""
        return self.head

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the embeddings, which are the target's."""
        return self.embeddings

    def inputs(
        self, tokens: Int[Tensor, "batch length"], features: Float[Tensor, "batch length features"], *, lag: int = 1
    ) -> Float[Tensor, "batch length hidden"]:
        """Return the inputs of the decoder layer: token i beside the features at token i - lag."""
        return self.maps[min(lag, self.longest_lag) - 1](self.map_inputs(tokens, features))

    def forward(
        self, tokens: Int[Tensor, "batch length"], features: Float[Tensor, "batch length features"], *, lag: int = 1
    ) -> Float[Tensor, "batch length hidden"]:
        """Return hidden states before the head, every position seeing features `lag` tokens old (or zeros)."""
        embedded = self.inputs(tokens, older(features, lag), lag=lag)
        return self.decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state


def older(features: Float[Tensor, "batch length width"], lag: int) -> Float[Tensor, "batch length width"]:
    """Return features of the token `lag` places before each, zeros where there is none."""
    return nn.functional.pad(features, (0, 0, lag, 0))[:, : features.shape[1]]


def _one_layer(target: Any) -> LlamaModel:
    """Make a decoder of one layer without embeddings; it starts as a Llama target's last layer (others: at random).

    Weights that the target keeps in another form, as a compressed one its keys and values, start at random too.
    """
    config = LlamaConfig(
        hidden_size=target.config.hidden_size,
        intermediate_size=getattr(target.config, "intermediate_size", 4 * target.config.hidden_size),
        num_hidden_layers=1,
        num_attention_heads=target.config.num_attention_heads,
        num_key_value_heads=getattr(target.config, "num_key_value_heads", target.config.num_attention_heads),
        head_dim=getattr(target.config, "head_dim", None),
        max_position_embeddings=target.config.max_position_embeddings,
        rms_norm_eps=getattr(target.config, "rms_norm_eps", 1e-5),
        rope_parameters=getattr(target.config, "rope_parameters", None),
        vocab_size=1,
        bos_token_id=None,
        eos_token_id=None,
    )
    decoder = LlamaModel(config)
    del decoder.embed_tokens
    source = target.get_decoder()
    if isinstance(source.layers[-1], LlamaDecoderLayer):
        own, last = decoder.layers[0].state_dict(), source.layers[-1].state_dict()
        same = {name: weight for name, weight in last.items() if name in own and own[name].shape == weight.shape}
        decoder.layers[0].load_state_dict(same, strict=False)
        decoder.norm.load_state_dict(source.norm.state_dict())
    return decoder


@torch.no_grad()
def fit_maps(
    model: FeatureModel, batches: Iterable[TeachingBatch], *, wanted: int, tokens: int = 60_000
) -> list[float]:
    """Set the maps of a feature model in place by ridge regression; return the share of variance each explains.

    What the target's last layer reads at token i, h_i, is known from one pass; the map of lag k is the linear one that
    best says it from the embedding of token i and the features at i - k.

    `wanted` is the layer among `model.layers` whose hidden states are to be said: the input of the target's last layer.
    Reads `tokens` tokens at most. Raises ValueError where the model does not see that layer.
    """
    if wanted not in model.layers:
        raise ValueError(f"the drafter sees layers {list(model.layers)}, not {wanted}: add it to them")
    place, sums = model.layers.index(wanted), [_Sums() for _ in range(model.longest_lag)]
    for batch in tqdm(batches, desc="ridge regression", unit="batch", leave=False, mininterval=5):
        assert batch.features is not None
        states = batch.features.chunk(len(model.layers), dim=-1)[place].float()
        for lag, kept in enumerate(sums, start=1):
            known = real_positions(batch, first=lag + 1)
            kept.add(model.map_inputs(batch.ids, older(batch.features, lag))[known].float(), states[known])
        if sums[0].count >= tokens:
            break
    for linear, kept in zip(model.maps, sums, strict=True):
        cast(nn.Linear, linear).weight.copy_(kept.solution().T)
    return [kept.explained() for kept in sums]


def real_positions(batch: TeachingBatch, *, first: int) -> Bool[Tensor, "batch length"]:
    """Return the positions from `first` to a row's last scored one: the first token's states are unlike all others."""
    places = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    last = torch.where(batch.scored, places, 0).amax(dim=1, keepdim=True)
    return (places >= first) & (places <= last)


class _Sums:
    """Second moments of inputs x and outputs y, and the ridge regression of y on x."""

    def __init__(self) -> None:
        self.count, self.inputs, self.cross, self.outputs = 0, torch.tensor(0.0), torch.tensor(0.0), torch.tensor(0.0)

    def add(self, x: Float[Tensor, "rows in"], y: Float[Tensor, "rows out"]) -> None:
        """Add rows."""
        self.count += len(x)
        self.inputs = self.inputs + (x.T @ x).cpu()
        self.cross = self.cross + (x.T @ y).cpu()
        self.outputs = self.outputs + y.square().sum(0).cpu()

    def solution(self) -> Float[Tensor, "in out"]:
        """Return weights W that minimise |x W - y|^2 + damping |W|^2."""
        damped = self.inputs.double()
        damped.diagonal().add_(DAMPING * damped.diagonal().mean())
        return torch.linalg.solve(damped, self.cross.double()).float()

    def explained(self) -> float:
        """Return the share of the outputs' second moment that the solution explains."""
        weights = self.solution()
        left = self.outputs - 2 * (weights * self.cross).sum(0) + ((self.inputs @ weights) * weights).sum(0)
        return 1 - float(left.sum() / self.outputs.sum())


class FeatureDrafter(AutoregressiveDrafter):
    """Draft with a `FeatureModel`, reading the target's hidden states of every verified token."""

    def __init__(self, model: FeatureModel) -> None:
        self.model = model.eval()
        self.layers = model.layers

    def begin(self, target: Any, batch: int) -> None:
        """Start with an empty cache."""
        self._vocab = target.config.get_text_config().vocab_size
        self._context = TreeContext(self.model.decoder, batch)
        self._fed = 0

    def _read(self, prefix: Prefix) -> Tensor:
        """Read the verified tokens with fresh features; drafted ones were read with stale ones and are taken back."""
        assert prefix.features is not None
        if self._tree and self._fed:
            self._context.settle(
                torch.zeros(len(prefix.lengths), self._fed, dtype=torch.bool, device=prefix.tokens.device)
            )
        else:
            self._context.rollback(torch.full_like(self._context.lengths, self._fed))
        self._fed = 0
        positions = prefix.since(self._context.lengths)
        before = (positions - 1).clamp(min=0)
        features = prefix.features.gather(1, before[..., None].expand(-1, -1, prefix.features.shape[-1]))
        features = torch.where((positions > 0)[..., None], features, 0)
        tokens = prefix.tokens.gather(1, positions.clamp(min=0))
        self._features = features[:, -1:]
        return self._context.read(tokens, positions >= 0, embeddings=self.model.inputs(tokens, features)).hidden[:, -1]

    def _feed(self, tokens: Tensor, parents: Tensor, valid: Tensor, depth: int) -> Tensor:
        self._fed += tokens.shape[1]
        embedded = self.model.inputs(tokens, self._features.expand(-1, tokens.shape[1], -1), lag=depth + 1)
        if self._tree:
            return self._context.grow(tokens, parents, valid, embeddings=embedded).hidden
        return self._context.read(tokens, embeddings=embedded).hidden


def save_feature_model(model: FeatureModel, path: Path | str, *, dtype: torch.dtype | None = None) -> None:
    """Write a feature model to a safetensors file, or into a folder, without what it has of its target.

    That are the embeddings, and a head that is not its own. Weights keep their dtype, or take another.
    """
    own_head = model.head.weight.requires_grad
    theirs = ("embeddings.",) if own_head else ("embeddings.", "head.weight")
    kept = {name: w for name, w in model.state_dict().items() if not name.startswith(theirs)}
    weights = {
        name: (w.to(dtype) if dtype is not None and w.is_floating_point() else w).contiguous()
        for name, w in kept.items()
    }
    options = {"layers": list(model.layers), "longest_lag": model.longest_lag, "own_head": own_head}
    save_file(weights, _file(path, make=True), metadata={"feature": json.dumps(options)})


def load_feature_model(path: Path | str, target: Any) -> FeatureModel:
    """Read a feature model, from a file or its folder, for the target that it was made for (or one of its shape).

    It has the target's dtype, in which it drafts fastest. Raises ValueError where the target has another shape.
    """
    file = _file(path)
    with safe_open(file, "pt") as opened:
        options = json.loads(opened.metadata()["feature"])
    weights = load_file(file)
    kept = weights["head.token_ids"].to(target.device)
    options["layers"] = tuple(options["layers"])
    config: Any = target.config
    fits = max(options["layers"]) <= config.num_hidden_layers and int(kept.max()) < config.vocab_size
    model = FeatureModel(target, token_ids=kept, **options) if fits else None
    shapes = {} if model is None else {name: tensor.shape for name, tensor in model.state_dict().items()}
    if model is None or any(shapes.get(name) != tensor.shape for name, tensor in weights.items()):
        raise ValueError(f"{file.name} drafts for a target of another shape: train a feature drafter for this one")
    model.load_state_dict(weights, strict=False)
    return model.to(target.dtype).eval()


def _file(path: Path | str, *, make: bool = False) -> Path:
    path = Path(path)
    if path.suffix == ".safetensors":
        return path
    if make:
        path.mkdir(parents=True, exist_ok=True)
    return path / "model.safetensors"
