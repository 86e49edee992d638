"""Verdicts: an estimate and its interval against the rule written in paper.toml; nothing else may decide a claim."""

import math
from dataclasses import asdict, dataclass

from lib import TenfoldError
from lib.lab.papers import ClaimRecord

REPRODUCED = "reproduced"
CONTRADICTED = "contradicted"
INCONCLUSIVE = "inconclusive"
NOT_TESTED = "not tested at this scale"


@dataclass(frozen=True)
class JudgedClaim:
    """A claim with the estimate that judged it; `estimate` and `ci` are None where this scale cannot test it."""

    id: str
    quote: str
    place: str
    measured: str
    rule: str
    unit: str
    estimate: float | None
    ci: tuple[float, float] | None
    n: str
    verdict: str
    timed: bool = False

    def as_dict(self) -> dict:
        """Plain record for results.json."""
        return asdict(self)


def verdict(claim: ClaimRecord, ci: tuple[float, float]) -> str:
    """Verdict of an interval: reproduced on the claimed side, contradicted on the other, else inconclusive."""
    low, high = ci
    if claim.rule == "within":
        assert claim.low is not None
        assert claim.high is not None
        if claim.low <= low and high <= claim.high:
            return REPRODUCED
        return CONTRADICTED if high < claim.low or low > claim.high else INCONCLUSIVE
    assert claim.threshold is not None
    claimed, opposite = low > claim.threshold, high < claim.threshold
    if claim.rule == "below":
        claimed, opposite = opposite, claimed
    return REPRODUCED if claimed else CONTRADICTED if opposite else INCONCLUSIVE


def rule_in_words(claim: ClaimRecord) -> str:
    """Rule as a reader sees it, such as `> 0 nats`."""
    unit = f" {claim.unit}" if claim.unit else ""
    if claim.rule == "within":
        return f"in [{claim.low:g}, {claim.high:g}]{unit}"
    return f"{'>' if claim.rule == 'above' else '<'} {claim.threshold:g}{unit}"


def judge(
    claim: ClaimRecord,
    profile: str,
    *,
    estimate: float | None = None,
    ci: tuple[float, float] | None = None,
    n: str = "",
) -> JudgedClaim:
    """Judge one claim under a profile.

    Raises TenfoldError where the profile can test the claim but no finite estimate with an ordered interval is given.
    """
    testable = profile in claim.profiles or (profile == "interactive" and "cpu" in claim.profiles)
    if estimate is None or ci is None:
        if testable:
            raise TenfoldError(
                f"claim {claim.id!r} can be tested under {profile!r}: give its estimate and its interval."
            )
        estimate, ci = None, None
    else:
        low, high = (float(bound) for bound in ci)
        estimate, ci = float(estimate), (low, high)
        if not all(map(math.isfinite, (estimate, low, high))) or low > high:
            raise TenfoldError(
                f"claim {claim.id!r}: estimate {estimate} with interval {ci} is not finite or not ordered."
            )
    decided = verdict(claim, ci) if testable and ci is not None else NOT_TESTED
    return JudgedClaim(
        claim.id,
        claim.quote,
        claim.place,
        claim.estimate,
        rule_in_words(claim),
        claim.unit,
        estimate,
        ci,
        n,
        decided,
        claim.timed,
    )
