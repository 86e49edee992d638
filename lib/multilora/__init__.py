"""Multi-LoRA composition for image generation (arXiv:2402.16843): merge, switch, composite on diffusers pipelines."""

from lib.multilora.composition import METHODS, Composition, Pass, compose
from lib.multilora.schedule import turn, turns

__all__ = ["METHODS", "Composition", "Pass", "compose", "turn", "turns"]
