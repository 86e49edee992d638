"""The benchmark side: families of evaluation tasks, their prompts, and what kind of task they are.

Without a hub: the names, descriptions and templates that the `lm-eval` wheel ships (read inside it, not imported) and
the tasks of the `evals` registry. With one (the `gpu` profile): the task categories on Hugging Face dataset cards, as
the paper did. A family (a folder of the harness, a task of the registry) counts once, however many languages, subjects
or splits it has: otherwise a few translated examinations would be all there is.
"""

import re
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lib import TenfoldError, zoo
from lib.usergpt.conversations import shorten

FOLDER = "lm_eval/tasks/"
FILES = 6  # task files read of a family: the rest are its other languages and subjects
PROMPTS = 2  # prompts kept of a family


@dataclass(frozen=True)
class Family:
    """Benchmark tasks that belong together: `lm-eval/<folder>` or `evals/<task>`, with some of their prompts."""

    id: str
    files: int
    prompts: tuple[str, ...]
    output_type: str = ""

    @property
    def collection(self) -> str:
        """`lm-eval` or `evals`."""
        return self.id.split("/")[0]


def lm_eval_families(wheel: Path | None = None) -> list[Family]:
    """List the families of the harness: folders with at least one task file, their templates freed of markup."""
    import yaml

    members: dict[str, list[str]] = {}
    with zipfile.ZipFile(wheel or zoo.assets.require("lm-eval")) as archive:
        for name in sorted(archive.namelist()):
            parts = name.split("/")
            if name.startswith(FOLDER) and len(parts) > 3 and name.endswith((".yaml", ".yml", "_yaml")):
                members.setdefault(parts[2], []).append(name)
        families = []
        for family, names in sorted(members.items()):
            tasks = [task for name in names[:FILES] if (task := _task(archive.read(name), yaml))]
            prompts = dict.fromkeys(filter(None, (_prompt(task) for task in tasks)))
            kinds = Counter(str(task["output_type"]) for task in tasks if "output_type" in task)
            kind = kinds.most_common(1)[0][0] if kinds else ""
            families.append(Family(f"lm-eval/{family}", len(names), tuple(prompts)[:PROMPTS], kind))
    return families


def _task(content: bytes, yaml: Any) -> dict[str, Any] | None:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda loader, suffix, node: None)  # `!function` names code: not run here
    try:
        task = yaml.load(content, Loader)
    except yaml.YAMLError:
        return None
    return task if isinstance(task, dict) else None


def _prompt(task: dict[str, Any]) -> str:
    parts = [task.get(key) for key in ("description", "doc_to_text")]
    text = " ".join(part for part in parts if isinstance(part, str))
    text = re.sub(r"{%.*?%}|{{.*?}}", " … ", text, flags=re.DOTALL)
    words = " ".join(text.split())
    return shorten(words, 480) if len(re.findall(r"[^\W\d_]{2,}", words)) >= 3 else ""


def evals_families(rows: Iterable[dict[str, Any]] | None = None) -> list[Family]:
    """List the families of the `evals` registry: tasks with one instruction, and their first prompts in full."""
    prompts: dict[str, list[str]] = {}
    counts: Counter[str] = Counter()
    for row in zoo.stream_dataset("evals", "all") if rows is None else rows:
        counts[row["task"]] += 1
        kept = prompts.setdefault(row["task"], [])
        if len(kept) < PROMPTS:
            kept.append(f"{shorten(row['instruction'], 240)}\n{shorten(row['input'], 240)}")
    return [Family(f"evals/{task}", counts[task], tuple(kept)) for task, kept in sorted(prompts.items())]


def summary(families: Iterable[Family]) -> pd.DataFrame:
    """Count families, tasks (files of the harness, rows of the registry) and prompts of each collection."""
    rows = [(f.collection, f.id, f.files, len(f.prompts)) for f in families]
    table = pd.DataFrame(rows, columns=["collection", "families", "tasks", "prompts"])
    return table.groupby("collection").agg({"families": "count", "tasks": "sum", "prompts": "sum"}).reset_index()


CATEGORIES = {
    "question-answering": "QAN", "multiple-choice": "QAN", "table-question-answering": "QAN",
    "visual-question-answering": "QAN", "text-classification": "CLS", "token-classification": "EXT",
    "zero-shot-classification": "CLS", "sentence-similarity": "CLS", "text-ranking": "CLS",
    "summarization": "SUM", "translation": "TRA", "feature-extraction": "EXT",
}  # fmt: skip
VAGUE = ("text-generation", "text2text-generation", "fill-mask", "conversational", "other")


def hub_task_counts(datasets: Iterable[Any] | None = None, *, limit: int = 20_000, fewest: int = 10) -> dict[str, int]:
    """Count English text data sets of the Hugging Face hub by task code, from the categories on their cards.

    Categories of fewer than `fewest` data sets are dropped, as in the paper; those that name no task (`VAGUE`) count as
    none. Raises TenfoldError where the hub cannot be reached.
    """
    if datasets is None:
        from huggingface_hub import HfApi

        try:
            datasets = list(HfApi().list_datasets(filter=["language:en", "modality:text"], limit=limit))
        except Exception as error:
            raise TenfoldError(
                f"the hub does not list its data sets ({type(error).__name__}): connect, or use the wheels' benchmarks."
            ) from None
    categories: Counter[str] = Counter()
    for dataset in datasets:
        categories.update({tag.split(":", 1)[1] for tag in dataset.tags or () if tag.startswith("task_categories:")})
    counts: Counter[str] = Counter()
    for category, count in categories.items():
        if count >= fewest and category in CATEGORIES:
            counts[CATEGORIES[category]] += count
    return dict(counts)
