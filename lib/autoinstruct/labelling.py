"""Labels: how well an instruction does on an example, for many pairs, batched over what their prompts share.

Every result is written down as soon as its batch is done, so a run that is cut off goes on where it stopped.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lib.autoinstruct import journal, metrics
from lib.autoinstruct.decoding import Decoded, decode_groups, stop_tokens
from lib.autoinstruct.prompts import Demonstration, answer_ids, prompt_ids


@dataclass(frozen=True)
class Pair:
    """An instruction to be tried on an example, whose accepted answers are known.

    `others` are answers to other examples, whose log-probabilities after this prompt are wanted too.
    """

    instruction: str
    input: str
    answers: tuple[str, ...]
    demonstrations: tuple[Demonstration, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Label:
    """Outcome of a pair: the model's answer, its ROUGE-L and exact match, and the gold reply's log-probability.

    `log_prob` is the first accepted answer's with its end of turn, a mean over tokens, in nats. Without generation
    `output` is None and the two scores are NaN.
    """

    output: str | None
    rouge_l: float
    exact_match: float
    log_prob: float
    other_log_probs: tuple[float, ...] = field(default=())


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

    Prompts with one instruction and the same demonstrations share their beginning, which is encoded once. `store` is a
    file of finished labels that this call continues. Raises ValueError for a pair without an answer.
    """
    for pair in pairs:
        if not pair.answers:
            raise ValueError(f"the example {pair.input[:40]!r} has no answer: labels need at least one")
    options = {"model": model.config.name_or_path, "dtype": str(model.dtype), "max_new_tokens": max_new_tokens}
    keys = [_key(pair, options) for pair in pairs]
    found = _stored(store)
    open_pairs = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in found}
    encoded = {key: _Encoded.of(tokenizer, pair) for key, pair in open_pairs.items()}
    with tqdm(total=len(encoded), desc="label", unit="pair", disable=not progress, mininterval=1.0) as bar:
        for batch in _batches(open_pairs, encoded, batch_rows):
            decoded = decode_groups(
                model,
                [[encoded[key].prompt for key in group] for group in batch],
                gold=[[encoded[key].replies for key in group] for group in batch],
                stops=stop_tokens(tokenizer),
                max_new_tokens=max_new_tokens,
            )
            names = [key for group in batch for key in group]
            made = _labels(tokenizer, [open_pairs[key] for key in names], decoded, generated=max_new_tokens > 0)
            found |= dict(zip(names, made, strict=True))
            journal.append(store, ({"key": key} | asdict(one) for key, one in zip(names, made, strict=True)))
            bar.update(len(names))
    return [found[key] for key in keys]


@dataclass(frozen=True)
class _Encoded:
    prompt: list[int]
    replies: list[list[int]]

    @classmethod
    def of(cls, tokenizer: Any, pair: Pair) -> "_Encoded":
        prompt = prompt_ids(tokenizer, pair.instruction, pair.input, demonstrations=pair.demonstrations)
        return cls(prompt, [answer_ids(tokenizer, answer) for answer in (pair.answers[0], *pair.others)])


def _key(pair: Pair, options: dict[str, Any]) -> str:
    text = json.dumps([asdict(pair), options], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _batches(pairs: dict[str, Pair], encoded: dict[str, _Encoded], batch_rows: int) -> Iterable[list[list[str]]]:
    """Batches of groups of keys: groups of like length and size together, at most `batch_rows` rows a batch.

    A batch holds pairs with equally many replies.
    """
    by_prefix: dict[tuple, list[str]] = {}
    for key, pair in pairs.items():
        by_prefix.setdefault((pair.instruction, pair.demonstrations, len(pair.others)), []).append(key)
    groups = []
    for (_, _, count), keys in by_prefix.items():
        keys.sort(key=lambda key: len(encoded[key].prompt))
        groups += [(count, keys[i : i + batch_rows]) for i in range(0, len(keys), batch_rows)]
    groups.sort(key=lambda item: (item[0], len(item[1]), len(encoded[item[1][-1]].prompt)))
    batch: list[list[str]] = []
    for index, (count, keys) in enumerate(groups):
        batch.append(keys)
        following = groups[index + 1] if index + 1 < len(groups) else None
        if following is None or following[0] != count or (len(batch) + 1) * len(following[1]) > batch_rows:
            yield batch
            batch = []


def _labels(tokenizer: Any, pairs: Sequence[Pair], decoded: Decoded, *, generated: bool) -> list[Label]:
    made = []
    for pair, tokens, (gold, *others) in zip(pairs, decoded.tokens, decoded.log_probs, strict=True):
        if generated:
            output = metrics.first_line(tokenizer.decode(tokens, skip_special_tokens=True))
            rouge, exact = metrics.rouge_l(output, pair.answers), float(metrics.exact_match(output, pair.answers))
        else:
            output, rouge, exact = None, float("nan"), float("nan")
        made.append(Label(output, rouge, exact, gold, tuple(others)))
    return made


def _stored(store: Path | None) -> dict[str, Label]:
    """Finished labels of a store."""
    found = {}
    for record in journal.read(store):
        key = record.pop("key")
        record["other_log_probs"] = tuple(record["other_log_probs"])
        found[key] = Label(**record)
    return found
