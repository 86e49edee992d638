"""Auto-Instruct: instructions written by a language model and ranked by a trained model (arXiv:2310.13127)."""

from lib.autoinstruct.choosing import choose, per_example, per_task
from lib.autoinstruct.generation import Candidate, CandidateSet, Inducer, collect, generate, variants
from lib.autoinstruct.labelled import LabelledTask, label_task
from lib.autoinstruct.labelling import Label, Pair, label
from lib.autoinstruct.metrics import exact_match, rouge_l
from lib.autoinstruct.prompts import Demonstration
from lib.autoinstruct.ranker import CrossEncoder, FrozenHead, LabelTable, YesLogit, fit, load_scorer, predict
from lib.autoinstruct.suite import folds, screen, select
from lib.autoinstruct.tasks import Example, Rule, Task, make_tasks, read_jsonl

__all__ = [
    "Candidate",
    "CandidateSet",
    "CrossEncoder",
    "Demonstration",
    "Example",
    "FrozenHead",
    "Inducer",
    "Label",
    "LabelTable",
    "LabelledTask",
    "Pair",
    "Rule",
    "Task",
    "YesLogit",
    "choose",
    "collect",
    "exact_match",
    "fit",
    "folds",
    "generate",
    "label",
    "label_task",
    "load_scorer",
    "make_tasks",
    "per_example",
    "per_task",
    "predict",
    "read_jsonl",
    "rouge_l",
    "screen",
    "select",
    "variants",
]
