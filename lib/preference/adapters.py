"""LoRA on the top layers of a policy, and how a trained policy is put away and taken up again.

Adapters stay in float32 on a 16-bit model: updates of 16-bit weights at these learning rates would be rounded away.
"""

import os
from pathlib import Path
from typing import Any, cast

import torch

from lib import TenfoldError
from lib.core.store import key_of
from lib.core.training import bits_of

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def with_lora(model: Any, *, layers: int | None = None, rank: int = 16, alpha: int = 32, seed: int = 0) -> Any:
    """Return a PEFT model with LoRA adapters on the top `layers` layers (all where None); they start as the identity.

    They lie on the projections of Llama's names, or, where a model has none, on those that PEFT chooses for its class.
    Raises ValueError for a number of layers that the model does not have, and for a class that PEFT does not know.
    """
    from peft import LoraConfig, get_peft_model
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as CHOSEN

    depth: int = model.config.get_text_config().num_hidden_layers
    layers = depth if layers is None else layers
    if not 1 <= layers <= depth:
        raise ValueError(f"the model has {depth} layers: put adapters on 1 to {depth} of them, not {layers}")
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()} & set(PROJECTIONS)
    if not present and model.config.model_type not in CHOSEN:
        raise ValueError(
            f"{type(model).__name__} has none of the layers {', '.join(PROJECTIONS)}: put adapters on it by PEFT's "
            "get_peft_model, and give the adapted model"
        )
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=list(PROJECTIONS) if present else None,
        layers_to_transform=list(range(depth - layers, depth)), task_type="CAUSAL_LM",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def _is_peft(policy: Any) -> bool:
    return hasattr(policy, "peft_config")


def _adapter(policy: Any) -> str:
    """Name the adapter at work; raises ValueError where that are several."""
    active: Any = policy.active_adapters  # a method of a model that transformers adapted itself
    names: list[str] = list(cast(Any, active() if callable(active) else active))
    if len(names) != 1:
        raise ValueError(f"{len(names)} adapters are at work ({', '.join(names)}): train one, by set_adapter")
    return names[0]


def weights(policy: Any) -> dict[str, torch.Tensor]:
    """Return the weights that training moves: the adapter's, or all of a plain model's (on the CPU, copied)."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in _moved(policy).items()}


def _moved(policy: Any) -> dict[str, torch.Tensor]:
    if _is_peft(policy):
        from peft import get_peft_model_state_dict

        return get_peft_model_state_dict(policy, adapter_name=_adapter(policy))
    moved = policy.state_dict()
    if getattr(policy.config, "tie_word_embeddings", False):
        moved.pop("lm_head.weight", None)
    return moved


def policy_key(policy: Any) -> str:
    """Hash the shapes of what `weights` returns, and of an adapter its strength and the weights that it stands on."""
    shapes, below, strength = {name: list(value.shape) for name, value in _moved(policy).items()}, {}, None
    if _is_peft(policy):
        strength = getattr(policy.peft_config[_adapter(policy)], "lora_alpha", None)
        adapters = tuple(f".{name}." for name in policy.peft_config)
        below = bits_of(
            (name, weight)
            for name, weight in policy.named_parameters()
            if not any(adapter in f"{name}." for adapter in adapters)
        )
    return key_of(shapes, below, strength)


def set_weights(policy: Any, values: dict[str, torch.Tensor]) -> None:
    """Put weights back that `weights` returned; raises TenfoldError where they are another model's."""
    if _is_peft(policy):
        from peft import set_peft_model_state_dict

        unexpected = set_peft_model_state_dict(policy, values, adapter_name=_adapter(policy)).unexpected_keys
    else:
        unexpected = policy.load_state_dict(values, strict=False).unexpected_keys
        policy.tie_weights()
    if unexpected:
        raise TenfoldError(f"the weights do not belong to this policy ({unexpected[0]}): begin in another folder.")


def save_policy(policy: Any, folder: Path) -> None:
    """Write the weights that training moves to `policy.safetensors` in a folder."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights(policy), folder / ".policy.safetensors")
    os.replace(folder / ".policy.safetensors", folder / "policy.safetensors")  # whole, or not there


def load_policy(policy: Any, folder: Path) -> None:
    """Take up what `save_policy` wrote, in place; raises TenfoldError where there is nothing."""
    from safetensors.torch import load_file

    path = folder / "policy.safetensors"
    if not path.exists():
        raise TenfoldError(f"{folder} holds no trained policy: train one first.")
    set_weights(policy, load_file(path))
