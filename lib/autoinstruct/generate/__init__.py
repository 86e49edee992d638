"""Candidate instructions: from meta-prompts (a capable model), from a fine-tuned inducer, and from rules."""

from lib.autoinstruct.generate.candidates import Candidate, CandidateSet, collect
from lib.autoinstruct.generate.endpoint import Budget, BudgetSpent, Endpoint
from lib.autoinstruct.generate.inducer import Inducer, inducer_examples
from lib.autoinstruct.generate.local import LocalGenerator
from lib.autoinstruct.generate.meta import generate
from lib.autoinstruct.generate.rules import format_line, variants
from lib.autoinstruct.generate.styles import FEW_SHOT, ZERO_SHOT, WorkedTask, meta_prompt, style_of

__all__ = [
    "FEW_SHOT",
    "ZERO_SHOT",
    "Budget",
    "BudgetSpent",
    "Candidate",
    "CandidateSet",
    "Endpoint",
    "Inducer",
    "LocalGenerator",
    "WorkedTask",
    "collect",
    "format_line",
    "generate",
    "inducer_examples",
    "meta_prompt",
    "style_of",
    "variants",
]
