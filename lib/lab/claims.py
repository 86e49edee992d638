"""Verdicts: an estimate and its interval against the rule written in paper.toml; nothing else may decide a claim.

A claim has one of six verdicts. It is reproduced where its whole interval lies strictly on the claimed side, and
contradicted where it lies on the other. An interval that covers both is inconclusive, unless the claim is that there is
an effect (its threshold is 0) and the interval leaves out every effect as large as the smallest one worth finding,
which paper.toml states: then there is no such effect. Where a gate that it names has failed, its verdict is "not
testable here", whatever its estimate. Checks and gates are no claims: they pass or fail, and a number on the bound
passes.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lib import TenfoldError
from lib.lab.papers import CheckRecord, ClaimRecord, GateRecord, PaperRecord, RuledRecord, places

REPRODUCED = "reproduced"
CONTRADICTED = "contradicted"
INCONCLUSIVE = "inconclusive"
NO_EFFECT = "no such effect"
NOT_TESTABLE = "not testable here"
NEEDS_GPU = "needs the gpu profile"
NEEDS_CPU = "needs the cpu profile"  # only ever in the smoke profile, whose sizes are too small for the claim
TO_RUN = "to be run again"  # what it measures, its scale or its gates have changed since the run that is shown
VERDICTS = (REPRODUCED, INCONCLUSIVE, NO_EFFECT, CONTRADICTED, NOT_TESTABLE, NEEDS_GPU, NEEDS_CPU, TO_RUN)
BY_RULE = (REPRODUCED, CONTRADICTED, INCONCLUSIVE, NO_EFFECT)

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Outcome:
    """What claims, checks and gates have in common once they are measured; `as_dict` is their form in results.json."""

    id: str
    measured: str
    rule: str
    unit: str
    estimate: float | None
    ci: tuple[float, float] | None
    n: str

    def as_dict(self) -> dict[str, Any]:
        """Plain record for results.json."""
        return asdict(self)


@dataclass(frozen=True)
class Measured(Outcome):
    """A check or a gate with its number; `passed` is None where this profile does not judge it."""

    what: str
    passed: bool | None
    timed: bool = False

    @property
    def verdict(self) -> str:
        """Outcome in a word."""
        return passed_in_words(self.passed)


@dataclass(frozen=True)
class JudgedClaim(Outcome):
    """A claim with the estimate that judged it; `failed_gates` holds id, estimate and rule of each gate in its way.

    `estimate` and `ci` are None where this scale cannot test it.
    """

    quote: str
    place: str
    verdict: str
    timed: bool
    gates: tuple[str, ...]
    failed_gates: tuple[dict[str, Any], ...]
    smallest_effect: float | None
    planned_count: str


def passed_in_words(passed: bool | None) -> str:
    """Outcome of a check or gate in a word; never a verdict on the paper."""
    return {True: "passed", False: "failed", None: "not judged in this profile"}[passed]


def verdict(claim: ClaimRecord, ci: tuple[float, float]) -> str:
    """Verdict of an interval by a claim's rule alone, its gates apart."""
    low, high = ci
    if claim.rule == "within":
        assert claim.low is not None
        assert claim.high is not None
        if claim.low <= low and high <= claim.high:
            return REPRODUCED
        return CONTRADICTED if high < claim.low or low > claim.high else INCONCLUSIVE
    assert claim.threshold is not None
    if claim.rule == "below":
        low, high, threshold = -high, -low, -claim.threshold
    else:
        threshold = claim.threshold
    if low > threshold:
        return REPRODUCED
    if high < threshold:
        return CONTRADICTED
    none = threshold == 0 and claim.smallest_effect is not None and high < claim.smallest_effect
    return NO_EFFECT if none else INCONCLUSIVE


def keeps(record: RuledRecord, low: float, high: float) -> bool:
    """Whether all of [low, high] keeps the rule of a check or gate, its bound included."""
    at_least = {"above": record.threshold, "within": record.low}.get(record.rule)
    at_most = {"below": record.threshold, "within": record.high}.get(record.rule)
    return (at_least is None or low >= at_least) and (at_most is None or high <= at_most)


def rule_in_words(record: RuledRecord) -> str:
    """Rule as a reader sees it: `> 0 nats` for a claim, `≥ 0.5 of tokens` for a check or gate."""
    unit = f" {record.unit}" if record.unit else ""
    if record.rule == "within":
        return f"in [{record.low:g}, {record.high:g}]{unit}"
    more, less = (">", "<") if isinstance(record, ClaimRecord) else ("≥", "≤")
    return f"{more if record.rule == 'above' else less} {record.threshold:g}{unit}"


def decides(record: ClaimRecord | CheckRecord | GateRecord, profile: str) -> bool:
    """Whether runs of a profile decide a claim or check; a gate is decided by every run."""
    profiles = (profile,) if isinstance(record, GateRecord) else record.profiles
    return profile in profiles or (profile == "interactive" and "cpu" in profiles)


def judge(
    claim: ClaimRecord,
    profile: str,
    *,
    estimate: float | None = None,
    ci: tuple[float, float] | None = None,
    n: str = "",
    failed_gates: Sequence[Measured] = (),
) -> JudgedClaim:
    """Judge one claim under a profile, given those of its gates that failed.

    Raises TenfoldError where the claim can be tested but no finite estimate with an ordered interval is given.
    """
    if estimate is None or ci is None:
        if decides(claim, profile) and not failed_gates:
            raise TenfoldError(
                f"claim {claim.id!r} can be tested under {profile!r}: give its estimate and its interval."
            )
        estimate, ci = None, None
    else:
        estimate, ci = _finite(claim, estimate, ci)
    if not decides(claim, profile):
        decided = NEEDS_CPU if profile == "smoke" and "cpu" in claim.profiles else NEEDS_GPU
    else:
        decided = NOT_TESTABLE if failed_gates or ci is None else verdict(claim, ci)
    failed = tuple({"id": g.id, "estimate": g.estimate, "rule": g.rule} for g in failed_gates)
    return JudgedClaim(
        **_shared(claim), estimate=estimate, ci=ci, n=n, quote=claim.quote, place=claim.place, verdict=decided,
        timed=claim.timed, gates=claim.gates, failed_gates=failed if decided == NOT_TESTABLE else (),
        smallest_effect=claim.smallest_effect, planned_count=claim.planned_count,
    )  # fmt: skip


def measure(
    record: CheckRecord | GateRecord,
    profile: str,
    *,
    estimate: float,
    ci: tuple[float, float] | None = None,
    n: str = "",
) -> Measured:
    """Compare a check or gate with its rule: a check by its whole interval (where it has one), a gate by its estimate.

    Raises TenfoldError where the numbers are not finite or the interval is not ordered.
    """
    estimate, bounds = _finite(record, estimate, (estimate, estimate) if ci is None else ci)
    low, high = (estimate, estimate) if isinstance(record, GateRecord) else bounds
    passed = keeps(record, low, high) if decides(record, profile) else None
    shown = None if ci is None else bounds
    timed = isinstance(record, CheckRecord) and record.timed
    return Measured(**_shared(record), estimate=estimate, ci=shown, n=n, what=record.what, passed=passed, timed=timed)


def unmeasured(record: CheckRecord | GateRecord) -> Measured:
    """A check or gate that this profile need not measure, as results.json lists it."""
    return Measured(**_shared(record), estimate=None, ci=None, n="", what=record.what, passed=None)


def _shared(record: RuledRecord) -> dict[str, Any]:
    return {"id": record.id, "measured": record.estimate, "rule": rule_in_words(record), "unit": record.unit}


def _finite(record: RuledRecord, estimate: float, ci: tuple[float, float]) -> tuple[float, tuple[float, float]]:
    value, low, high = float(estimate), float(ci[0]), float(ci[1])
    if not all(map(math.isfinite, (value, low, high))) or low > high:
        raise TenfoldError(
            f"{record.kind} {record.id!r}: estimate {value} with interval {(low, high)} is not finite or not ordered."
        )
    return value, (low, high)


def verdict_in_words(claim: Mapping[str, Any]) -> str:
    """Verdict of a claim of results.json, with what made it so where that is not in the rule.

    Where gates failed, the number of each and what it had to be; of an effect that is not there, its size.
    """
    if claim["verdict"] == NO_EFFECT:
        unit = f" {claim['unit']}" if claim["unit"] else ""
        return f"{NO_EFFECT} (none of {claim['smallest_effect']:g}{unit} or more)"
    failed = [f"gate {g['id']} is {g['estimate']:.3g}, not {g['rule']}" for g in claim.get("failed_gates", ())]
    return f"{claim['verdict']} ({'; '.join(failed)})" if failed else claim["verdict"]


def interval(outcome: Mapping[str, Any]) -> str:
    """Estimate with its interval where it has one, or a dash where this scale gave none."""
    if outcome["estimate"] is None:
        return "–"
    if outcome["ci"] is None:
        return f"{outcome['estimate']:.3g}"
    low, high = outcome["ci"]
    return f"{outcome['estimate']:.3g} [{low:.3g}, {high:.3g}]"


def fill(finding: str, metrics: Mapping[str, float], outcomes: Mapping[str, JudgedClaim | Measured]) -> str:
    """Finding with every place filled from the claims, checks and gates by id, else from the metrics by name.

    What this profile could not measure reads "not measured". Raises TenfoldError for a place that nothing fills.
    """
    said = []
    for words, name, spec in places(finding):
        said.append(words)
        if name is None:
            continue
        outcome = outcomes.get(name)
        if outcome is None and (name not in metrics or spec in ("ci", "verdict")):
            of = "neither a metric nor" if name not in metrics else "a metric, not"
            raise TenfoldError(
                f"the finding's place {{{name}{':' * bool(spec)}{spec}}} cannot be filled: "
                f"{name!r} is {of} a claim, check or gate of this run."
            )
        said.append(_filled(outcome, spec) if outcome else format(float(metrics[name]), spec or ".3g"))
    return "".join(said)


def _filled(outcome: JudgedClaim | Measured, spec: str) -> str:
    if spec == "verdict":
        return outcome.verdict
    if outcome.estimate is None:
        return NOT_MEASURED
    return interval(outcome.as_dict()) if spec == "ci" else format(outcome.estimate, spec or ".3g")


def judged_again(content: Mapping[str, Any], paper: PaperRecord) -> dict[str, Any]:
    """Content of a results.json as the claims of `paper`, its estimates judged by today's rules, its finding told anew.

    What a gate or a scale kept from a verdict stays so. A claim that reads otherwise than in the run, in what it
    measures, its scale or its gates, is `TO_RUN`; where the finding then names what the run had not, it stays as told.
    """
    told, judged = {claim["id"]: claim for claim in content["claims"]}, []
    for claim in paper.claims:
        today = {"rule": rule_in_words(claim), "smallest_effect": claim.smallest_effect}
        if claim.id not in told or _reads_otherwise(told[claim.id], claim, content, paper):
            judged.append(_to_run(claim))
        elif told[claim.id]["verdict"] in BY_RULE:
            low, high = told[claim.id]["ci"]
            judged.append(_to_run(claim) | told[claim.id] | today | {"verdict": verdict(claim, (low, high))})
        else:
            judged.append(_to_run(claim) | told[claim.id] | today)
    outcomes: dict[str, JudgedClaim | Measured] = {claim["id"]: JudgedClaim(**_as_tuples(claim)) for claim in judged}
    outcomes |= {one["id"]: Measured(**_as_tuples(one)) for kind in ("checks", "gates") for one in content[kind]}
    try:
        finding = fill(paper.finding, content["metrics"], outcomes)
    except TenfoldError:
        if all(claim["verdict"] != TO_RUN for claim in judged):
            raise
        finding = content["finding"]
    return dict(content) | {"claims": judged, "finding": finding}


def _to_run(claim: ClaimRecord) -> dict[str, Any]:
    return JudgedClaim(
        **_shared(claim), estimate=None, ci=None, n="", quote=claim.quote, place=claim.place, verdict=TO_RUN,
        timed=claim.timed, gates=claim.gates, failed_gates=(), smallest_effect=claim.smallest_effect,
        planned_count=claim.planned_count,
    ).as_dict()  # fmt: skip


def _reads_otherwise(
    told: Mapping[str, Any], claim: ClaimRecord, content: Mapping[str, Any], paper: PaperRecord
) -> bool:
    """Whether a claim of a run was another than today's: in what it measures, its scale or its gates.

    Its rule alone may change: a number that was measured is judged by today's. A gate's may not, for what it kept from
    a verdict stays so.
    """
    decided = told["verdict"] not in (NEEDS_GPU, NEEDS_CPU)
    if (told["measured"], told["unit"], tuple(told.get("gates", ())), decided) != (
        claim.estimate, claim.unit, claim.gates, decides(claim, content.get("profile", "cpu")),
    ):  # fmt: skip
        return True
    gates = {(g["id"], g["measured"], g["rule"]) for g in content.get("gates", ()) if g["id"] in claim.gates}
    return not gates <= {(gate.id, gate.estimate, rule_in_words(gate)) for gate in paper.gates}


def _as_tuples(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}


def read(path: Path) -> dict[str, Any]:
    """Content of a results.json; one written before there were checks, gates and findings has none of them."""
    content = json.loads(path.read_text(encoding="utf8"))
    return {"checks": [], "gates": [], "finding": ""} | content
