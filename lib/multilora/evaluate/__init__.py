"""Judges of composed images: CLIPScore and a comparative vision-language model; scenes have their own ground truth."""

from lib.multilora.evaluate.clipscore import ClipScorer
from lib.multilora.evaluate.comparative import Comparison, compare, position_bias
from lib.multilora.evaluate.vision import VisionModel

__all__ = ["ClipScorer", "Comparison", "VisionModel", "compare", "position_bias"]
