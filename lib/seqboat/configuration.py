"""Configuration of a stack, with the names of the paper's hyper-parameters beside those of transformers."""

from typing import Any, no_type_check

from transformers import AutoConfig, PretrainedConfig

from lib.seqboat.attention import FUNCTIONS
from lib.seqboat.gau import POSITIONS
from lib.seqboat.layers import LAYERS, NORMS

INPUTS = ("tokens", "values")


@no_type_check  # transformers' configs take keywords that their signature does not name; fields are checked by its own
class SeqBoatConfig(PretrainedConfig):
    """Configuration of a SeqBoat model.

    `hidden_size` d, `value_size` h, `key_size` z, `ema_size` N; `window` w counts active tokens (None: no limit).
    `layer`: `seqboat`, or a baseline of `lib.seqboat.study.peers`: `mega` (chunks of w tokens), `transformer` (with
    `feed_forward_size`). `always_active` is the dense-activation ablation. `inputs`: `tokens` (also bytes), or
    `values`: one number a position (pixels, audio).

    Raises ValueError for unknown names, sizes below 1, and batch norm in a causal model, which would leak the future.
    Defaults: the Text recipe of arXiv:2306.11197.
    """

    model_type = "seqboat"
    keys_to_ignore_at_inference = ["last_hidden_state", "cache", "activations", "hidden_states"]

    vocab_size: int = 256
    inputs: str = "tokens"
    layer: str = "seqboat"
    hidden_size: int = 128
    value_size: int = 256
    key_size: int = 64
    feed_forward_size: int = 256
    num_hidden_layers: int = 4
    ema_size: int = 16
    ema_method: str = "auto"
    truncation: int | None = None
    window: int | None = 128
    attention_function: str = "softmax"
    positions: str = "local"
    absolute_positions: bool = False
    max_position_embeddings: int = 4096
    norm: str = "scale"
    prenorm: bool = False
    final_affine: bool = True
    temperature_scale: float = 0.3
    activation_bias: float = 0.0
    always_active: bool = False
    dropout: float = 0.0
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    is_decoder: bool = False
    num_labels: int = 2
    tie_word_embeddings: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for field, known in {
            "layer": LAYERS, "inputs": INPUTS, "attention_function": FUNCTIONS, "positions": POSITIONS,
            "norm": NORMS,
        }.items():  # fmt: skip
            if getattr(self, field) not in known:
                raise ValueError(f"{field} must be one of {', '.join(known)}, got {getattr(self, field)!r}")
        for field in ("vocab_size", "hidden_size", "value_size", "key_size", "num_hidden_layers", "ema_size"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1 active token, or None for no limit, got {self.window}")
        if self.is_decoder and self.norm == "batch":
            raise ValueError(
                "batch norm takes statistics over whole texts: a causal model would see the future in training, so "
                "set norm to 'layer' or 'scale'"
            )
        super().__post_init__(**kwargs)


AutoConfig.register("seqboat", SeqBoatConfig)
