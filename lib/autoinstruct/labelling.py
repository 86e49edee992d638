"""Labels: how well an instruction does on an example, for many pairs, batched over what their prompts share.

Every result is written down as soon as its batch is done, so a run that is cut off goes on where it stopped.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from tqdm import tqdm

from lib.autoinstruct import metrics
from lib.autoinstruct.candidates import Candidate
from lib.autoinstruct.decoding import Answers, answer_groups, answer_ids, messages_of, prompt_ids, stop_tokens
from lib.autoinstruct.tasks import Demonstration, Task
from lib.autoinstruct.trainer import LabelTable
from lib.core.chat import Chat, Decoding, complete_all
from lib.core.store import Journal, key_of
from lib.core.training import bits_of

METRICS = ("choice", "log_prob", "rouge_l", "exact_match")


@dataclass(frozen=True)
class Pair:
    """An instruction to be tried on an example, whose accepted answers are known.

    `others` are wrong answers, with which the gold one competes.
    """

    instruction: str
    input: str
    answers: tuple[str, ...]
    demonstrations: tuple[Demonstration, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Label:
    """Outcome of a pair: the model's answer, its ROUGE-L and exact match, and how likely the gold reply is.

    A reply is an answer with its end of turn; `log_prob` is the first accepted answer's, a mean over tokens, in nats,
    and `other_log_probs` are the others'. `choice` is the gold reply's probability, given that the reply is it or one
    of the others. Without others it is NaN, and without generation `output` is None and its two scores are NaN.
    """

    output: str | None
    rouge_l: float
    exact_match: float
    log_prob: float
    choice: float = math.nan
    other_log_probs: tuple[float, ...] = ()


def label(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    *,
    max_new_tokens: int = 16,
    batch_rows: int = 64,
    store: Path | None = None,
    progress: bool = True,
) -> list[Label]:
    """Label pairs in order, greedily decoded (`max_new_tokens = 0`: log-probabilities only).

    `model` is a causal language model, or a `Chat` (an endpoint; no tokenizer), of which only answers are seen.
    Prompts with one instruction and the same demonstrations share their beginning, which is encoded once. `store` is a
    file of finished labels (a `core.store` journal) that this call continues; it knows the model by its weights, with
    its adapters, and by the chat template. Raises ValueError for a pair without an answer, for an endpoint with a
    store, and for a tokenizer without a token that ends a text.
    """
    for pair in pairs:
        if not pair.answers:
            raise ValueError(f"the example {pair.input[:40]!r} has no answer: labels need at least one")
    if isinstance(model, Chat):
        if store is not None:
            raise ValueError("an endpoint keeps its replies in its client's journal: leave out store")
        return _asked(model, pairs, max_new_tokens)
    if getattr(tokenizer, "eos_token_id", None) is None:
        raise ValueError("an answer ends with the tokenizer's eos_token, and this one names none: set it")
    settings = {"model": model.config.name_or_path, "dtype": str(model.dtype), "max_new_tokens": max_new_tokens}
    if store is not None:
        settings |= {"weights": _weights_key(model), "template": getattr(tokenizer, "chat_template", None)}
    keys = [key_of(asdict(pair), settings) for pair in pairs]
    with Journal(store) as journal:
        asked = set(keys)  # the file may hold more than labels
        kept = {key: row for key, row in journal.items() if key in asked}
        done = {key: Label(**row | {"other_log_probs": tuple(row["other_log_probs"])}) for key, row in kept.items()}
        open_pairs = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in done}
        prompts = {key: _prompt(tokenizer, pair) for key, pair in open_pairs.items()}
        with tqdm(total=len(prompts), desc="label", unit="pair", disable=not progress, mininterval=1.0) as bar:
            for batch in _batches(open_pairs, prompts, batch_rows):
                names = [key for group in batch for key in group]
                answers = answer_groups(
                    model,
                    [[prompts[key] for key in group] for group in batch],
                    replies=[_replies(tokenizer, open_pairs[key]) for key in names],
                    stops=stop_tokens(tokenizer),
                    max_new_tokens=max_new_tokens,
                )
                labels = _labels(tokenizer, [open_pairs[key] for key in names], answers, generated=max_new_tokens > 0)
                done |= dict(zip(names, labels, strict=True))
                journal.put_many((key, asdict(done[key])) for key in names)
                bar.update(len(names))
    return [done[key] for key in keys]


def _weights_key(model: Any) -> str:
    """Hash every parameter's bits and which adapters are at work."""
    sums = bits_of((name, weight) for name, weight in model.named_parameters() if not weight.is_meta)
    adapted = [module for module in model.modules() if hasattr(module, "_disable_adapters")]
    return key_of(sums, sorted({str((module._disable_adapters, module.active_adapters)) for module in adapted}))


def _asked(chat: Chat, pairs: Sequence[Pair], max_tokens: int) -> list[Label]:
    questions = [messages_of(pair.instruction, pair.input, pair.demonstrations) for pair in pairs]
    replies = complete_all(chat, questions, Decoding(temperature=0.0, max_tokens=max_tokens))
    labels = []
    for pair, reply in zip(pairs, replies, strict=True):
        output = metrics.first_line(reply.text)
        exact = float(metrics.exact_match(output, pair.answers))
        labels.append(Label(output, metrics.rouge_l(output, pair.answers), exact, math.nan))
    return labels


def _prompt(tokenizer: Any, pair: Pair) -> list[int]:
    return prompt_ids(tokenizer, pair.instruction, pair.input, demonstrations=pair.demonstrations)


def _replies(tokenizer: Any, pair: Pair) -> list[list[int]]:
    return [answer_ids(tokenizer, answer) for answer in (pair.answers[0], *pair.others)]


def _batches(pairs: dict[str, Pair], prompts: dict[str, list[int]], batch_rows: int) -> Iterable[list[list[str]]]:
    """Batches of groups of keys: groups of like length and size together, at most `batch_rows` rows a batch.

    A batch holds pairs with equally many replies.
    """
    by_prefix: dict[tuple, list[str]] = {}
    for key, pair in pairs.items():
        by_prefix.setdefault((pair.instruction, pair.demonstrations, len(pair.others)), []).append(key)
    groups = []
    for (_, _, count), keys in by_prefix.items():
        keys.sort(key=lambda key: len(prompts[key]))
        groups += [(count, keys[i : i + batch_rows]) for i in range(0, len(keys), batch_rows)]
    groups.sort(key=lambda item: (item[0], len(item[1]), len(prompts[item[1][-1]])))
    batch: list[list[str]] = []
    for index, (count, keys) in enumerate(groups):
        batch.append(keys)
        following = groups[index + 1] if index + 1 < len(groups) else None
        if following is None or following[0] != count or (len(batch) + 1) * len(following[1]) > batch_rows:
            yield batch
            batch = []


def _labels(tokenizer: Any, pairs: Sequence[Pair], answers: Answers, *, generated: bool) -> list[Label]:
    labels = []
    for pair, tokens, sums in zip(pairs, answers.tokens, answers.log_probs, strict=True):
        output, rouge, exact = None, math.nan, math.nan
        if generated:
            output = metrics.first_line(tokenizer.decode(tokens, skip_special_tokens=True))
            rouge, exact = metrics.rouge_l(output, pair.answers), float(metrics.exact_match(output, pair.answers))
        gold, *others = (total / len(ids) for total, ids in zip(sums, _replies(tokenizer, pair), strict=True))
        # p(gold | one of the replies), from whole replies: a long answer is less likely, and so is each of its rivals
        choice = math.exp(sums[0] - np.logaddexp.reduce(sums)) if others else math.nan
        labels.append(Label(output, rouge, exact, gold, choice, tuple(others)))
    return labels


def label_task(
    model: Any,
    tokenizer: Any,
    task: Task,
    candidates: Sequence[Candidate],
    *,
    demonstrations: Sequence[Demonstration] = (),
    max_new_tokens: int = 16,
    batch_rows: int = 64,
    store: Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Try all candidates on all examples: one row a pair with `candidate`, `example` (indices), `output`, scores."""
    pairs = [
        Pair(candidate.text, example.input, example.answers, tuple(demonstrations), task.others(example))
        for candidate in candidates
        for example in task.examples
    ]
    options = {"max_new_tokens": max_new_tokens, "batch_rows": batch_rows, "store": store, "progress": progress}
    labels = label(model, tokenizer, pairs, **options)
    width = len(task.examples)
    return pd.DataFrame(
        {
            "candidate": np.arange(len(pairs)) // width,
            "example": np.arange(len(pairs)) % width,
            "output": [one.output or "" for one in labels],
            **{name: [float(getattr(one, name)) for one in labels] for name in METRICS},
        }
    )


@dataclass(frozen=True)
class LabelledTask:
    """Labels of a task's candidates; `frame` is what `label_task` gave, whose last rows may be of `controls`.

    Controls are instructions that nothing chooses among: empty, irrelevant.
    """

    task: Task
    candidates: Sequence[Candidate]
    frame: pd.DataFrame
    controls: tuple[str, ...] = ()

    def metric(self, name: str) -> Float[np.ndarray, "examples candidates"]:
        """A metric of every candidate on every example."""
        return self._array(name)[:, : len(self.candidates)]

    def control(self, control: str, name: str) -> Float[np.ndarray, " examples"]:
        """A metric under a control instruction."""
        return self._array(name)[:, len(self.candidates) + self.controls.index(control)]

    def _array(self, name: str) -> np.ndarray:
        return self.frame.pivot(index="example", columns="candidate", values=name).to_numpy()

    def table(self, name: str) -> LabelTable:
        """Labels as rankers learn from them."""
        inputs = tuple(example.input for example in self.task.examples)
        return LabelTable(self.task.name, inputs, tuple(self.candidates), self.metric(name))

    def value(self, picks: Int[np.ndarray, " examples"], name: str) -> float:
        """Mean metric over the examples of the candidates picked."""
        return float(np.take_along_axis(self.metric(name), picks[:, None], 1).mean())

    @property
    def human(self) -> int:
        """Index of the human instruction."""
        return [candidate.origin for candidate in self.candidates].index("human")
