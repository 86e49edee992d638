"""`lib/<paper>/paper.toml`: the paper's facts, and what a run of its notebook has to hand in.

Five things, each of which has a table or a key of its own:

- `[[claims]]`, what the paper says, quoted, with the rule that decides it;
- `[[checks]]`, identities and bounds of our own code, which say nothing about the paper;
- `[[gates]]`, measured preconditions without which the verdict of a claim would mean nothing;
- `finding`, one or two sentences with places that the results fill: `{name}` for a metric or for the estimate of a
  claim, check or gate, `{name:.2%}` in a format of Python's, `{name:ci}` with its interval, `{name:verdict}` in words;
- `headline`, what README's table says was found: the paper's main point in plain words, and `{claim}` for its verdict.
"""

import string
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lib import TenfoldError
from lib.lab.paths import GUIDES, did_you_mean

Rule = Literal["above", "below", "within"]
Profile = Literal["smoke", "cpu", "gpu"]
ALL_PROFILES: tuple[Profile, ...] = ("smoke", "cpu", "gpu")
WORDS = ("ci", "verdict")  # formats of a finding's places beside Python's own


class Record(BaseModel):
    """Strict base: an unknown key in a paper.toml is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RuledRecord(Record):
    """What claims, checks and gates share: an estimate, described in words, and the rule that it is compared with.

    `above` and `below` compare with `threshold`, `within` with the band [`low`, `high`].
    """

    kind: ClassVar[str]

    id: str
    estimate: str
    rule: Rule
    threshold: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""

    @model_validator(mode="after")
    def _rule_has_its_numbers(self):
        if self.rule == "within" and (self.low is None or self.high is None or self.low >= self.high):
            raise ValueError(f"{self.kind} {self.id!r}: the rule 'within' needs low < high")
        if self.rule != "within" and self.threshold is None:
            raise ValueError(f"{self.kind} {self.id!r}: the rule {self.rule!r} needs a threshold")
        return self


class ClaimRecord(RuledRecord):
    """A testable claim of the paper: what it says, where, and which interval of the estimate would confirm it.

    `profiles` lists the scales that can decide it, and `gates` the ids of the preconditions without which its verdict
    would mean nothing. `smallest_effect` is the smallest effect worth finding, in the claim's unit, and
    `planned_count` the count that finds it with a power of at least .8, such as "64 prompts". Where the threshold is 0,
    an interval that leaves out every effect as large says that there is none.
    """

    kind: ClassVar[str] = "claim"

    quote: str
    place: str
    profiles: tuple[Profile, ...] = ALL_PROFILES
    timed: bool = False  # rests on a clock: never compared with a recorded number
    gates: tuple[str, ...] = ()
    smallest_effect: float | None = Field(None, gt=0)
    planned_count: str = ""

    @model_validator(mode="after")
    def _a_count_has_its_effect(self):
        if bool(self.planned_count) != (self.smallest_effect is not None):
            raise ValueError(f"claim {self.id!r}: smallest_effect and planned_count go together")
        return self


class CheckRecord(RuledRecord):
    """An identity or a bound of our own code, shown and counted apart: `what` says in a sentence what holds."""

    kind: ClassVar[str] = "check"

    what: str
    profiles: tuple[Profile, ...] = ALL_PROFILES
    timed: bool = False


class GateRecord(RuledRecord):
    """A measured precondition: `what` says in a sentence what must be so before a claim that names it can be judged."""

    kind: ClassVar[str] = "gate"

    what: str


Ruled = TypeVar("Ruled", bound=RuledRecord)


class PaperRecord(Record):
    """One paper: what to cite, whose code there is and under which licence, what we test and what we found."""

    title: str
    short: str
    arxiv: str
    venue: str
    idea: str
    authors_code: str = ""
    authors_code_licence: str = ""
    bibtex: str
    not_reproduced: tuple[str, ...] = ()
    headline: str = ""
    finding: str = ""
    claims: tuple[ClaimRecord, ...]
    checks: tuple[CheckRecord, ...] = ()
    gates: tuple[GateRecord, ...] = ()

    @model_validator(mode="after")
    def _ids_are_unique(self):
        seen: dict[str, str] = {}
        for one in self.all():
            if one.id in seen:
                raise ValueError(f"a {seen[one.id]} and a {one.kind} share the id {one.id!r}")
            seen[one.id] = one.kind
        return self

    @model_validator(mode="after")
    def _gates_are_there(self):
        known = [gate.id for gate in self.gates]
        for claim in self.claims:
            for name in claim.gates:
                if name not in known:
                    raise ValueError(f"claim {claim.id!r} names the gate {name!r}; {did_you_mean(name, known)}")
        return self

    @model_validator(mode="after")
    def _finding_can_be_filled(self):
        for _, name, spec in places(self.finding):
            if name is not None and spec not in WORDS:
                try:
                    format(0.0, spec)
                except ValueError as error:
                    raise ValueError(f"the finding's place {{{name}:{spec}}} has no format of a number") from error
        return self

    @model_validator(mode="after")
    def _headline_names_claims(self):
        known = [claim.id for claim in self.claims]
        for _, name, spec in places(self.headline):
            if name is not None and (spec or name not in known):
                raise ValueError(f"the headline's place {{{name}{':' * bool(spec)}{spec}}} is no {{claim}}")
        return self

    def all(self) -> tuple[ClaimRecord | CheckRecord | GateRecord, ...]:
        """Claims, checks and gates, in this order."""
        return (*self.claims, *self.checks, *self.gates)

    def claim(self, claim_id: str) -> ClaimRecord:
        """Claim by id; raises TenfoldError where the paper.toml has none by that id."""
        return self._one_of(self.claims, ClaimRecord.kind, claim_id)

    def check(self, check_id: str) -> CheckRecord:
        """Check by id; raises TenfoldError where the paper.toml has none by that id."""
        return self._one_of(self.checks, CheckRecord.kind, check_id)

    def gate(self, gate_id: str) -> GateRecord:
        """Gate by id; raises TenfoldError where the paper.toml has none by that id."""
        return self._one_of(self.gates, GateRecord.kind, gate_id)

    def _one_of(self, known: tuple[Ruled, ...], kind: str, wanted: str) -> Ruled:
        for one in known:
            if one.id == wanted:
                return one
        for other in self.all():
            if other.id == wanted:
                raise TenfoldError(f"{wanted!r} is a {other.kind} of paper.toml, not a {kind}: use run.{other.kind}.")
        raise TenfoldError(f"no {kind} {wanted!r} in paper.toml; {did_you_mean(wanted, [one.id for one in known])}")


def places(text: str) -> Iterator[tuple[str, str | None, str]]:
    """Parts of a finding: the words before a place, its name (None after the last one) and its format.

    Raises ValueError for braces that do not fit and for a place without a name.
    """
    for words, name, spec, conversion in string.Formatter().parse(text):
        if name == "" or conversion:
            raise ValueError("a place of the finding is {name} or {name:format}")
        yield words, name, spec or ""


def path_of(paper: str) -> Path:
    """Place of a paper's record, beside its method."""
    import lib

    return Path(lib.__file__).parent / paper / "paper.toml"


def load(paper: str) -> PaperRecord:
    """Record of a paper (of a guide: one without claims).

    Raises TenfoldError where the file is missing or does not fit the form.
    """
    if paper in GUIDES:
        return PaperRecord(title=paper, short=paper, arxiv="", venue="", idea="", bibtex="", claims=())
    path = path_of(paper)
    if not path.exists():
        raise TenfoldError(f"lib/{paper}/paper.toml is missing: write the paper's facts and claims there.")
    try:
        return PaperRecord(**tomllib.loads(path.read_text(encoding="utf8")))
    except (ValidationError, tomllib.TOMLDecodeError) as error:
        raise TenfoldError(f"lib/{paper}/paper.toml does not fit: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        return f"{'.'.join(map(str, problem['loc'])) or 'record'}: {problem['msg']}."
    return f"{error}."
