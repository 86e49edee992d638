"""Drafting from the target's own hidden states, after EAGLE (arXiv:2401.15077, 2503.01840): an extension.

One decoder layer reads, at each position, the token's embedding and the target's hidden states at the newest verified
token before it. Within a block these grow stale: `lag` says by how many tokens, and each lag has its own map.

The layer starts as the target's last one, and the maps as the ridge regression of what that layer reads in the target:
so the drafter is a good one before its first gradient step.
"""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from lib.tempspec.context import Context
from lib.tempspec.drafters import Autoregressive
from lib.tempspec.drafting import Prefix
from lib.tempspec.heads import ReducedHead


class FeatureModel(nn.Module):
    """The network of a `FeatureDrafter`: embeddings and features fused into one decoder layer, and a reduced head.

    `layers` are the target's hidden states it sees. Embeddings, last layer and head start as the target's, the first
    stay so; `fit_maps` gives the maps their start. Features older than `longest_lag` tokens go through the last map.
    """

    def __init__(
        self, target: Any, *, layers: tuple[int, ...], token_ids: Int[Tensor, " kept"], longest_lag: int = 3
    ) -> None:
        super().__init__()
        config: Any = target.config
        width = config.hidden_size
        self.layers, self.longest_lag = layers, longest_lag
        self.embeddings = nn.Embedding.from_pretrained(target.get_input_embeddings().weight.detach().float())
        self.norms = nn.ModuleList([nn.RMSNorm(width, eps=config.rms_norm_eps) for _ in layers])
        self.embedding_norm = nn.RMSNorm(width, eps=config.rms_norm_eps)
        maps = [nn.Linear(width * (len(layers) + 1), width, bias=False) for _ in range(longest_lag)]
        self.maps = nn.ModuleList(maps)
        self.decoder = _one_layer(target)
        weight = target.get_output_embeddings().weight.detach().float()
        self.head = ReducedHead(weight[token_ids], token_ids, config.vocab_size)
        self.to(target.device)

    def joined(
        self, tokens: Int[Tensor, "batch length"], features: Float[Tensor, "batch length features"]
    ) -> Float[Tensor, "batch length joined"]:
        """Embeddings beside features, each normalised: what the maps take."""
        parts = features.to(self.embedding_norm.weight.dtype).chunk(len(self.layers), dim=-1)
        seen = [norm(part) for norm, part in zip(self.norms, parts, strict=True)]
        return torch.cat([self.embedding_norm(self.embeddings(tokens)), *seen], dim=-1)

    def inputs(
        self, tokens: Int[Tensor, "batch length"], features: Float[Tensor, "batch length features"], *, lag: int = 1
    ) -> Float[Tensor, "batch length hidden"]:
        """Inputs of the decoder layer: token i beside the features at token i - lag."""
        return self.maps[min(lag, self.longest_lag) - 1](self.joined(tokens, features))

    def forward(
        self, tokens: Int[Tensor, "batch length"], features: Float[Tensor, "batch length features"], *, lag: int = 1
    ) -> Float[Tensor, "batch length hidden"]:
        """Hidden states before the head, all positions seeing features `lag` tokens old (zeros before the first)."""
        embedded = self.inputs(tokens, older(features, lag), lag=lag)
        return self.decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state


def older(features: Float[Tensor, "batch length width"], lag: int) -> Float[Tensor, "batch length width"]:
    """Features of the token `lag` places before each, zeros where there is none."""
    return nn.functional.pad(features, (0, 0, lag, 0))[:, : features.shape[1]]


def _one_layer(target: Any) -> LlamaModel:
    """A decoder of one layer without embeddings, which starts as a Llama target's last layer (others: at random)."""
    config = LlamaConfig(
        hidden_size=target.config.hidden_size,
        intermediate_size=target.config.intermediate_size,
        num_hidden_layers=1,
        num_attention_heads=target.config.num_attention_heads,
        num_key_value_heads=target.config.num_key_value_heads,
        max_position_embeddings=target.config.max_position_embeddings,
        rms_norm_eps=target.config.rms_norm_eps,
        rope_parameters=getattr(target.config, "rope_parameters", None),
        vocab_size=1,
        bos_token_id=None,
        eos_token_id=None,
    )
    decoder = LlamaModel(config)
    del decoder.embed_tokens
    source = target.get_decoder()
    if isinstance(source.layers[-1], LlamaDecoderLayer):
        decoder.layers[0].load_state_dict(source.layers[-1].state_dict())
        decoder.norm.load_state_dict(source.norm.state_dict())
    return decoder


class FeatureDrafter(Autoregressive):
    """Draft with a `FeatureModel`, reading the target's hidden states of every verified token."""

    def __init__(self, model: FeatureModel) -> None:
        self.model = model.eval()
        self.head, self.layers = model.head, model.layers

    def begin(self, target: Any, batch: int) -> None:
        """Start with an empty cache."""
        self._vocab = target.config.vocab_size
        self._context = Context(self.model.decoder, batch)
        self._drafted = 0

    def _read(self, prefix: Prefix) -> Tensor:
        """Read the verified tokens with fresh features; drafted ones were read with stale ones and are taken back."""
        assert prefix.features is not None
        self._context.forget(torch.full_like(self._context.lengths, self._drafted))
        self._drafted = 0
        positions = prefix.since(self._context.lengths)
        before = (positions - 1).clamp(min=0)
        features = prefix.features.gather(1, before[..., None].expand(-1, -1, prefix.features.shape[-1]))
        features = torch.where((positions > 0)[..., None], features, 0)
        tokens = prefix.tokens.gather(1, positions.clamp(min=0))
        self._features = features[:, -1:]
        return self._extend(self.model.inputs(tokens, features), positions >= 0)

    def _feed(self, tokens: Tensor, depth: int) -> Tensor:
        self._drafted += 1
        return self._extend(self.model.inputs(tokens[:, None], self._features, lag=depth + 1))

    def _extend(self, embedded: Tensor, valid: Tensor | None = None) -> Tensor:
        tokens = torch.zeros(embedded.shape[:2], dtype=torch.long, device=embedded.device)
        return self._context.extend(tokens, valid, inputs_embeds=embedded).hidden[:, -1]


def save_feature_model(model: FeatureModel, folder: Path | str) -> None:
    """Write a feature model without the embeddings, which are the target's."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: w.contiguous() for name, w in model.state_dict().items() if not name.startswith("embeddings.")}
    save_file(weights, folder / "model.safetensors")
    (folder / "feature.json").write_text(json.dumps({"layers": model.layers, "longest_lag": model.longest_lag}))


def load_feature_model(folder: Path | str, target: Any) -> FeatureModel:
    """Read a feature model made for a target (or one of its shape)."""
    folder = Path(folder)
    weights = load_file(folder / "model.safetensors")
    options = json.loads((folder / "feature.json").read_text())
    kept = weights["head.token_ids"].to(target.device)
    model = FeatureModel(target, layers=tuple(options["layers"]), token_ids=kept, longest_lag=options["longest_lag"])
    model.load_state_dict(weights, strict=False)
    return model.eval()
