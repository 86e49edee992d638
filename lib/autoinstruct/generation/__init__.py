"""Candidate instructions: from meta-prompts (a capable model), from a fine-tuned inducer, and from rules."""

from lib.autoinstruct.generation.candidates import Candidate, CandidateSet, collect
from lib.autoinstruct.generation.endpoint import Budget, BudgetSpent, Endpoint
from lib.autoinstruct.generation.inducer import Inducer, inducer_examples
from lib.autoinstruct.generation.local import LocalGenerator
from lib.autoinstruct.generation.meta import generate
from lib.autoinstruct.generation.rules import format_line, variants
from lib.autoinstruct.generation.styles import FEW_SHOT, ZERO_SHOT, WorkedTask, meta_prompt, style_of

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
