"""TempSpec: speculative decoding that knows its temperature (arXiv:2410.10141)."""

from lib.tempspec.decoder import SpeculativeDecoder, SpeculativeOutput
from lib.tempspec.drafters import ModelDrafter
from lib.tempspec.drafting import Drafter, Prefix, Proposal
from lib.tempspec.feature import FeatureDrafter, FeatureModel, load_feature_model, save_feature_model
from lib.tempspec.heads import ReducedHead, frequent_tokens
from lib.tempspec.lessons import Example, answer
from lib.tempspec.lookup import FirstOf, PromptLookupDrafter
from lib.tempspec.metrics import teacher_forced_acceptance
from lib.tempspec.stats import DecodingStats
from lib.tempspec.teaching import distill, teach
from lib.tempspec.truncate import load_drafter, save_drafter, truncate
from lib.tempspec.verify import Verification, verify, verify_greedy
from lib.tempspec.warping import Warping

__all__ = [
    "Example",
    "answer",
    "distill",
    "teach",
    "DecodingStats",
    "Drafter",
    "FeatureDrafter",
    "FeatureModel",
    "FirstOf",
    "ModelDrafter",
    "Prefix",
    "PromptLookupDrafter",
    "Proposal",
    "ReducedHead",
    "SpeculativeDecoder",
    "SpeculativeOutput",
    "Verification",
    "Warping",
    "frequent_tokens",
    "load_drafter",
    "load_feature_model",
    "save_feature_model",
    "save_drafter",
    "teacher_forced_acceptance",
    "truncate",
    "verify",
    "verify_greedy",
]
