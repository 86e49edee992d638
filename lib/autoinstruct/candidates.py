"""Candidate instructions: what one is, which are unusable, and rules that stand beside them as a baseline."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lib.autoinstruct.metrics import bare
from lib.autoinstruct.tasks import Demonstration

LONGEST = 1200  # characters; an instruction beyond this is a model that did not stop
NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?%?")
BRACKETS = ("[]", "{}", "()", '""')


@dataclass(frozen=True)
class Candidate:
    """An instruction, who made it (`human`, `model`, `rule`, `APE`, `COPRO`) and in which style."""

    text: str
    origin: str
    style: str


@dataclass(frozen=True)
class CandidateSet(Sequence[Candidate]):
    """Candidates in the order in which they came, and how many were refused for each reason."""

    candidates: tuple[Candidate, ...]
    refused: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, index: Any) -> Any:
        return self.candidates[index]

    def __len__(self) -> int:
        return len(self.candidates)

    @property
    def human(self) -> Candidate:
        """The seed instruction; raises ValueError where there is none."""
        found = [candidate for candidate in self.candidates if candidate.origin == "human"]
        if not found:
            raise ValueError("these candidates hold no human instruction: collect it with them")
        return found[0]


def collect(
    candidates: Iterable[Candidate],
    *,
    demonstrations: Sequence[Demonstration] = (),
    longest: int = LONGEST,
    refused: Mapping[str, int] | None = None,
) -> CandidateSet:
    """Leave out the unusable: `empty`, `copied` (a demonstration's text and nothing else), `too long` (characters),
    `duplicate` (the same words as an earlier one).

    A human instruction stays, however long. `refused` counts what was left out before.
    """
    copies = {bare(text) for demo in demonstrations for text in (demo.input, demo.output)}
    copies |= {bare(f"Input: {demo.input} Output: {demo.output}") for demo in demonstrations}
    kept: dict[str, Candidate] = {}
    counts = Counter(refused or {})
    for candidate in candidates:
        words, human = bare(candidate.text), candidate.origin == "human"
        if words in kept:
            counts["duplicate"] += 1
        elif not words and not human:
            counts["empty"] += 1
        elif words in copies and not human:
            counts["copied"] += 1
        elif len(candidate.text) > longest and not human:
            counts["too long"] += 1
        else:
            kept[words] = Candidate(candidate.text.strip(), candidate.origin, candidate.style)
    return CandidateSet(tuple(kept.values()), dict(counts))


def stands_in(phrase: str, text: str) -> bool:
    """Tell whether a text holds a phrase as words of its own; a single letter counts only in its own case."""
    if len(phrase.strip()) == 1:
        return bool(re.search(rf"(?<!\w){re.escape(phrase.strip())}(?!\w)", text))
    words = bare(phrase)
    return f" {words} " in f" {bare(text)} " if words else phrase.strip() in text


def shows(text: str, demonstrations: Sequence[Demonstration]) -> bool:
    """Tell whether an instruction spells a demonstration out, input and output: then a prompt is not zero-shot."""
    return any(stands_in(demo.input, text) and stands_in(demo.output, text) for demo in demonstrations)


def gives_away(text: str, answer: str, others: Sequence[str]) -> bool:
    """Tell whether an instruction names an example's answer alone: the answer stands there, and some other does not.

    A list of all labels names every answer and gives none away.
    """
    return stands_in(answer, text) and not all(stands_in(other, text) for other in others)


def format_line(demonstrations: Sequence[Demonstration]) -> str:
    """Say in one sentence what form answers have, by the demonstrations; raises ValueError without any."""
    if not demonstrations:
        raise ValueError("the form of an answer is read off demonstrations: give at least one")
    answers = [demo.output.strip() for demo in demonstrations]
    for opening, closing in BRACKETS:
        if all(len(a) > 1 and a[0] == opening and a[-1] == closing for a in answers):
            return f"Write only the answer, between {opening} and {closing}."
    labels = sorted(set(answers))
    few = 1 < len(labels) <= max(2, len(answers) // 2) and len(labels) < len(answers)
    if few and all(len(label) <= 20 for label in labels):
        return f"Answer with exactly one of: {', '.join(labels)}."
    if all(NUMBER.fullmatch(a) for a in answers):
        return "Answer with a number only."
    if all(len(a) == 1 and a.isalpha() for a in answers):
        return "Answer with a single letter only."
    longest = max(len(a.split()) for a in answers)
    if longest == 1:
        return "Answer with a single word only."
    return f"Answer in at most {longest} words, without explanation."


def variants(instruction: str, demonstrations: Sequence[Demonstration]) -> list[Candidate]:
    """Make a baseline by rule, one a style: the paper has none, and no candidate of its pipeline is made so."""
    seed, form = instruction.strip(), format_line(demonstrations)
    texts = {
        "format-line": f"{seed} {form}",
        "format-only": form,
        "form-first": f"{form} {seed}",
        "step-by-step": f"{seed}\nFirst, read the input. Second, work out the answer. Third, reply. {form}",
        "one-paragraph": f"You are given an input and must do the following task. {seed} Do not repeat the input and "
        f"do not explain your answer. {form}",
        "answer-only": f"{seed} Do not explain your answer.",
    }
    return [Candidate(text, "rule", style) for style, text in texts.items()]
