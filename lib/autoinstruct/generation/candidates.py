"""A candidate knows its origin and style; a set of them holds no empty, copied, endless or repeated text."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lib.autoinstruct.metrics import bare
from lib.autoinstruct.prompts import Demonstration

LONGEST = 1200  # characters; an instruction beyond this is a model that did not stop


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


def collect(
    candidates: Iterable[Candidate], *, demonstrations: Sequence[Demonstration] = (), longest: int = LONGEST
) -> CandidateSet:
    """Candidates without the unusable: `empty`, `copied` (a demonstration's text and nothing else), `too long`
    (characters), `duplicate` (the same words as an earlier one).
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
