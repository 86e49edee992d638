"""One call for a user's task: write instructions, try them, and return the best with its score on new examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lib.autoinstruct.candidates import Candidate, shows
from lib.autoinstruct.generation import generate
from lib.autoinstruct.labelling import METRICS, label_task
from lib.autoinstruct.modeling import Scorer
from lib.autoinstruct.tasks import Example, Task
from lib.autoinstruct.trainer import LabelTable, predict
from lib.core.chat import Chat


@dataclass(frozen=True)
class Optimised:
    """The instruction chosen, and its mean metric and the human one's on examples that had no part in the choice.

    `table` has a row for each candidate: `text`, `origin`, `style`, `chosen_by` (what the choice went by, higher is
    better) and `held_out` (the metric on the held-out examples, of the chosen and the human one only).
    """

    task: Task
    instruction: str
    score: float
    human_score: float
    metric: str
    table: pd.DataFrame
    refused: dict[str, int]

    def to_yaml(self, examples: Sequence[Example] = ()) -> str:
        """Write a promptfoo configuration: the human and the chosen instruction as prompts, examples as its tests."""
        import yaml

        prompts = list(dict.fromkeys([self.task.instruction, self.instruction]))
        tests = [
            {
                "vars": {"input": example.input},
                "assert": [{"type": "assert-set", "threshold": 1 / len(example.answers), "assert": [
                    {"type": "equals", "value": answer} for answer in example.answers
                ]}],
            }
            for example in examples or self.task.examples
        ]  # fmt: skip
        written = {"description": self.task.name, "prompts": [f"{text}\n\n{{{{input}}}}" for text in prompts]}
        return yaml.safe_dump(written | {"tests": tests}, sort_keys=False, allow_unicode=True)


def optimise(
    task: Task,
    model: Any,
    generator: Chat,
    *,
    tokenizer: Any = None,
    ranker: Scorer | None = None,
    metric: str = "rouge_l",
    samples: int = 3,
    shown: int = 3,
    max_tokens: int = 512,
    held_out: float = 0.5,
    max_new_tokens: int = 16,
    seed: int = 0,
) -> Optimised:
    """Have `generator` write instructions for a task, choose the best for `model`, and try it on held-out examples.

    The generator sees the first `shown` demonstrations and writes `samples` instructions of each style.

    `model` follows the instructions: a causal language model with its `tokenizer`, or any `Chat` (an endpoint), of
    which nothing but replies is seen. A trained `ranker` chooses from the inputs alone; without one every candidate is
    tried on the examples that are not held out, and the best by `metric` is taken (of equals the human one). The last
    share `held_out` of the task's examples scores the choice. Instructions that spell a demonstration out are left out.

    Raises ValueError for an unknown metric, one that an endpoint cannot give, a language model without a tokenizer, or
    too few examples.
    """
    if metric not in METRICS:
        raise ValueError(f"there is no metric {metric!r}: use one of {', '.join(METRICS)}")
    if isinstance(model, Chat) and metric in ("choice", "log_prob"):
        raise ValueError(f"{metric} needs a model's probabilities: with an endpoint use rouge_l or exact_match")
    if tokenizer is None and not isinstance(model, Chat):
        raise ValueError("a causal language model needs its tokenizer: give tokenizer=")
    count = round(len(task.examples) * held_out)
    if not 0 < count < len(task.examples):
        raise ValueError(f"{len(task.examples)} examples cannot be parted at {held_out}: give at least two")
    options: dict[str, Any] = {"samples": samples, "max_tokens": max_tokens, "seed": seed}
    written = generate(generator, task.instruction, task.demonstrations[:shown], **options)
    kept = [c for c in written if c.origin == "human" or not shows(c.text, task.demonstrations)]
    seen, new = task.examples[:-count], task.examples[-count:]

    def tried(candidates: Sequence[Candidate], examples: Sequence[Example]) -> list[float]:
        part = Task(task.name, task.instruction, task.demonstrations, task.screening, tuple(examples), task.labels)
        settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "progress": False}
        frame = label_task(model, tokenizer, part, candidates, **settings)
        means: Any = frame.groupby("candidate")[metric].mean()
        return means.tolist()

    if ranker is None:
        chosen_by = tried(kept, seen)
    else:
        inputs = tuple(example.input for example in seen)
        chosen_by = predict(ranker, [LabelTable.without_labels(task.name, inputs, kept)])[0].mean(0).tolist()
    best = max(range(len(kept)), key=lambda c: (chosen_by[c], -c))  # the human one is the first
    scores = tried([kept[best], written.human], new)
    table = pd.DataFrame([{"text": c.text, "origin": c.origin, "style": c.style} for c in kept])
    human = next(i for i, c in enumerate(kept) if c.origin == "human")
    table = table.assign(chosen_by=chosen_by, held_out=float("nan"))
    table.loc[[best, human], "held_out"] = [scores[0], scores[1]]
    refused = written.refused | {"shows a demonstration": len(written) - len(kept)}
    return Optimised(task, kept[best].text, scores[0], scores[1], metric, table, refused)
