"""TempSpec: speculative decoding that knows its temperature (arXiv:2410.10141)."""

from lib.core.generation import Warping
from lib.tempspec.answers import Example, answer, teacher_forced_acceptance
from lib.tempspec.decoder import SpeculativeDecoder, SpeculativeOutput
from lib.tempspec.drafters import Drafter, ModelDrafter, Prefix, Proposal
from lib.tempspec.feature import FeatureDrafter, FeatureModel, load_feature_model, save_feature_model
from lib.tempspec.lookup import FirstOf, PromptLookupDrafter, UniversalDrafter
from lib.tempspec.metrics import DecodingStats
from lib.tempspec.modeling import ReducedHead, frequent_tokens, load_drafter, save_drafter, truncate
from lib.tempspec.shape import AutoGamma, AutoTree, DynamicTree, Shape, StaticTree
from lib.tempspec.trainer import distill, teach
from lib.tempspec.verify import Verification, verify, verify_greedy

__all__ = [
    "AutoGamma",
    "AutoTree",
    "DecodingStats",
    "Drafter",
    "DynamicTree",
    "Example",
    "FeatureDrafter",
    "FeatureModel",
    "FirstOf",
    "ModelDrafter",
    "Prefix",
    "PromptLookupDrafter",
    "Proposal",
    "ReducedHead",
    "Shape",
    "SpeculativeDecoder",
    "SpeculativeOutput",
    "StaticTree",
    "UniversalDrafter",
    "Verification",
    "Warping",
    "answer",
    "distill",
    "frequent_tokens",
    "load_drafter",
    "load_feature_model",
    "save_drafter",
    "save_feature_model",
    "teach",
    "teacher_forced_acceptance",
    "truncate",
    "verify",
    "verify_greedy",
]
