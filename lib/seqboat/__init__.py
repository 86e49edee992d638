"""SeqBoat: sparse modular activation for linear-time sequence models (arXiv:2306.11197)."""

from lib.seqboat.attention import window_attention
from lib.seqboat.cache import SeqBoatCache
from lib.seqboat.configuration import SeqBoatConfig
from lib.seqboat.ema import DampedEMA, MultiDimensionalEMA, fft_convolve
from lib.seqboat.gau import GatedAttentionUnit
from lib.seqboat.modeling import (
    SeqBoatForCausalLM,
    SeqBoatForSequenceClassification,
    SeqBoatModel,
    SeqBoatOutput,
)
from lib.seqboat.sma import Activation, Compression, LatentConfigurator, SparseModularActivation

__all__ = [
    "Activation",
    "Compression",
    "DampedEMA",
    "GatedAttentionUnit",
    "LatentConfigurator",
    "MultiDimensionalEMA",
    "SeqBoatCache",
    "SeqBoatConfig",
    "SeqBoatForCausalLM",
    "SeqBoatForSequenceClassification",
    "SeqBoatModel",
    "SeqBoatOutput",
    "SparseModularActivation",
    "fft_convolve",
    "window_attention",
]
