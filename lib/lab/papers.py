"""`lib/<paper>/paper.toml`: the paper's facts and its testable claims, each with the rule that decides it."""

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from lib import TenfoldError
from lib.lab.paths import GUIDES, did_you_mean

Rule = Literal["above", "below", "within"]


class Record(BaseModel):
    """Strict base: an unknown key in a paper.toml is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ClaimRecord(Record):
    """A testable claim of the paper: what it says, where, and which interval of the estimate would confirm it.

    `above`/`below` compare the estimate's whole interval with `threshold`; `within` with the band [`low`, `high`].
    `profiles` lists the scales that can decide it; under any other the verdict is "not tested at this scale".
    """

    id: str
    quote: str
    place: str
    estimate: str
    rule: Rule
    threshold: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    profiles: tuple[str, ...] = ("smoke", "cpu", "gpu")
    timed: bool = False  # rests on a clock: never compared with a recorded number

    @model_validator(mode="after")
    def _rule_has_its_numbers(self):
        if self.rule == "within" and (self.low is None or self.high is None or self.low >= self.high):
            raise ValueError(f"claim {self.id!r}: the rule 'within' needs low < high")
        if self.rule != "within" and self.threshold is None:
            raise ValueError(f"claim {self.id!r}: the rule {self.rule!r} needs a threshold")
        return self


class PaperRecord(Record):
    """One paper: what to cite, whose code there is and under which licence, and the claims we test."""

    title: str
    short: str
    arxiv: str
    venue: str
    idea: str
    authors_code: str = ""
    authors_code_licence: str = ""
    bibtex: str
    not_reproduced: tuple[str, ...] = ()
    claims: tuple[ClaimRecord, ...]

    @model_validator(mode="after")
    def _ids_are_unique(self):
        ids = [claim.id for claim in self.claims]
        if len(ids) != len(set(ids)):
            raise ValueError("two claims share one id")
        return self

    def claim(self, claim_id: str) -> ClaimRecord:
        """Claim by id; raises TenfoldError where the paper.toml has none by that id."""
        for claim in self.claims:
            if claim.id == claim_id:
                return claim
        raise TenfoldError(
            f"no claim {claim_id!r} in paper.toml; {did_you_mean(claim_id, [c.id for c in self.claims])}"
        )


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
