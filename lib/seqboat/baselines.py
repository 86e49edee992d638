"""Models of equal size to compare with: the same stack with other layers, widened until the parameters agree."""

import copy

import torch

from lib.seqboat.configuration import SeqBoatConfig
from lib.seqboat.modeling import SeqBoatModel

HEAD = 16  # greatest head size of a Transformer that is narrower than 64


def parameter_count(config: SeqBoatConfig) -> int:
    """Parameters of a stack, counted on the meta device."""
    with torch.device("meta"):
        return sum(p.numel() for p in SeqBoatModel(config).parameters())


def matched(config: SeqBoatConfig, kind: str) -> SeqBoatConfig:
    """Return a baseline's configuration with the size of a SeqBoat's, as near as whole widths allow.

    `kind`: `always` (the same model, every token active), `mega` (chunks of the window's length; its value width is
    fitted) or `transformer` (its feed-forward width is fitted). Raises ValueError for another kind.
    """
    changed = copy.deepcopy(config)
    if kind == "always":
        changed.always_active = True
        return changed
    if kind not in ("mega", "transformer"):
        raise ValueError(f"a baseline is always, mega or transformer, got {kind!r}")
    changed.layer = kind
    field = "value_size" if kind == "mega" else "feed_forward_size"
    if kind == "transformer":
        changed.key_size = 64 if config.hidden_size % 64 == 0 else HEAD
        changed.norm, changed.prenorm = "layer", True
    sizes = []
    for width in (8, 16):  # parameters are linear in the width
        setattr(changed, field, width)
        sizes.append(parameter_count(changed))
    each = (sizes[1] - sizes[0]) / 8
    setattr(changed, field, max(8, round(8 + (parameter_count(config) - sizes[0]) / each)))
    return changed
