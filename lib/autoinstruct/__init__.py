"""Auto-Instruct: instructions written by a language model and ranked by a trained model (arXiv:2310.13127).

Candidates come from a capable model (`generation`), are tried on examples (`labelling`), and a ranker (`modeling`)
learns which helps which example (`objectives`, `trainer`). `optimise` does it all for one task, `teleprompter` in DSPy.
"""

from lib.autoinstruct.candidates import Candidate, CandidateSet, collect, format_line, variants
from lib.autoinstruct.generation import FEW_SHOT, ZERO_SHOT, WorkedTask, generate, meta_prompts
from lib.autoinstruct.labelling import LabelledTask, Pair, label, label_task
from lib.autoinstruct.metrics import exact_match, rouge_l
from lib.autoinstruct.modeling import CrossEncoder, FrozenHead, Scorer, YesLogit, load_scorer
from lib.autoinstruct.objectives import binary, listwise_kl, pointwise, target_distribution
from lib.autoinstruct.optimise import Optimised, optimise
from lib.autoinstruct.tasks import Demonstration, Example, Rule, Task, make_tasks, read_jsonl
from lib.autoinstruct.trainer import (
    LabelTable,
    choose,
    draw_rows,
    fit,
    popularity,
    popularity_weights,
    predict,
)
from lib.core.local_chat import LocalChat

__all__ = [
    "FEW_SHOT",
    "ZERO_SHOT",
    "Candidate",
    "CandidateSet",
    "CrossEncoder",
    "Demonstration",
    "Example",
    "FrozenHead",
    "LabelTable",
    "LabelledTask",
    "LocalChat",
    "Optimised",
    "Pair",
    "Rule",
    "Scorer",
    "Task",
    "WorkedTask",
    "YesLogit",
    "binary",
    "choose",
    "collect",
    "draw_rows",
    "exact_match",
    "fit",
    "format_line",
    "generate",
    "label",
    "label_task",
    "listwise_kl",
    "load_scorer",
    "make_tasks",
    "meta_prompts",
    "optimise",
    "pointwise",
    "popularity",
    "popularity_weights",
    "predict",
    "read_jsonl",
    "rouge_l",
    "target_distribution",
    "variants",
]
