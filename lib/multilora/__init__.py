"""Multi-LoRA composition for image generation (arXiv:2402.16843): merge, switch, composite on diffusers pipelines."""

from lib.multilora.composition import METHODS, Composition, Step, compose
from lib.multilora.merging import merge_adapters
from lib.multilora.regions import region
from lib.multilora.schedule import turn, turns

__all__ = ["METHODS", "Composition", "Step", "compose", "merge_adapters", "region", "turn", "turns"]
