"""Candidate instructions: what one is, which are unusable, and those that rules make from demonstrations.

Rules write what a capable model would add in each style (a line on the answer's form, steps, examples); a small model
cannot, so that they stand in for it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from lib.autoinstruct.metrics import bare
from lib.autoinstruct.tasks import Demonstration

LONGEST = 1200  # characters; an instruction beyond this is a model that did not stop
NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?%?")
BRACKETS = ("[]", "{}", "()", '""')


@dataclass(frozen=True)
class Candidate:
    """An instruction, who made it (`human`, `meta-prompt`, `inducer`, `rule`, `APE`, `dspy`) and in which style."""

    text: str
    origin: str
    style: str


@dataclass(frozen=True)
class CandidateSet:
    """Candidates in the order in which they came, and how many were refused for each reason."""

    candidates: tuple[Candidate, ...]
    refused: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.candidates)

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.candidates)


def collect(
    candidates: Iterable[Candidate], *, demonstrations: Sequence[Demonstration] = (), longest: int = LONGEST
) -> CandidateSet:
    """Leave out the unusable: `empty`, `copied` (a demonstration's text and nothing else), `too long` (characters),
    `duplicate` (the same words as an earlier one).
    """
    copies = {bare(text) for demo in demonstrations for text in (demo.input, demo.output)}
    copies |= {bare(f"Input: {demo.input} Output: {demo.output}") for demo in demonstrations}
    kept: dict[str, Candidate] = {}
    refused: Counter[str] = Counter()
    for candidate in candidates:
        words = bare(candidate.text)
        if not words:
            refused["empty"] += 1
        elif words in copies:
            refused["copied"] += 1
        elif len(candidate.text) > longest:
            refused["too long"] += 1
        elif words in kept:
            refused["duplicate"] += 1
        else:
            kept[words] = Candidate(candidate.text.strip(), candidate.origin, candidate.style)
    return CandidateSet(tuple(kept.values()), dict(refused))


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


def variants(instruction: str, demonstrations: Sequence[Demonstration], *, shown: int = 2) -> list[Candidate]:
    """Make candidates by rule, one a style, from a seed instruction and demonstrations;
    `shown` of these are spelled out.
    """
    seed, form = instruction.strip(), format_line(demonstrations)
    few = demonstrations[:shown]
    listed = "\n".join(f"{demo.input} -> {demo.output}" for demo in few)
    explained = " ".join(f'For example, if the input is "{demo.input}", answer "{demo.output}".' for demo in few)
    texts = {
        "format-line": f"{seed} {form}",
        "format-only": form,
        "use-example": f"{seed} {explained}",
        "use-example-format": f"{seed} {explained} {form}",
        "examples-only": f"Answer as in these examples.\n{listed}",
        "step-by-step": f"{seed}\nFirst, read the input. Second, work out the answer. Third, reply. {form}",
        "one-paragraph": f"You are given an input and must do the following task. {seed} Do not repeat the input and "
        f"do not explain your answer. {form}",
    }
    return [Candidate(text, "rule", style) for style, text in texts.items()]
