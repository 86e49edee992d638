import pytest
from pydantic import ValidationError

from lib import TenfoldError
from lib.lab import claims, papers
from lib.lab.papers import CheckRecord, ClaimRecord, GateRecord, PaperRecord

RULE = {"estimate": "e", "rule": "above", "threshold": 0.0}
SMALLEST = {"smallest_effect": 0.05, "planned_count": "9 seeds"}


def claim(**options):
    return ClaimRecord(**({"id": "c", "quote": "q", "place": "p"} | RULE | options))


def check(**options):
    return CheckRecord(**({"id": "k", "what": "w"} | RULE | options))


def gate(**options):
    return GateRecord(**({"id": "g", "what": "w"} | RULE | options))


def paper(**options):
    facts = {"title": "T", "short": "t", "arxiv": "0", "venue": "v", "idea": "i", "bibtex": "b", "claims": ()}
    return PaperRecord(**(facts | options))


@pytest.mark.parametrize(
    ("rule", "ci", "verdict"),
    [
        ({"rule": "above"}, (0.1, 0.2), "reproduced"),
        ({"rule": "above"}, (-0.2, -0.1), "contradicted"),
        ({"rule": "above"}, (-0.1, 0.1), "inconclusive"),
        ({"rule": "above"}, (0.0, 0.1), "inconclusive"),
        ({"rule": "below"}, (-0.2, -0.1), "reproduced"),
        ({"rule": "below"}, (0.1, 0.2), "contradicted"),
        ({"rule": "below"}, (-0.1, 0.1), "inconclusive"),
        ({"rule": "below", "threshold": 0.5}, (0.1, 0.2), "reproduced"),
        ({"rule": "above"} | SMALLEST, (-0.3, 0.04), "no such effect"),
        ({"rule": "above"} | SMALLEST, (-0.3, 0.05), "inconclusive"),
        ({"rule": "above"} | SMALLEST, (-0.3, -0.1), "contradicted"),
        ({"rule": "above"} | SMALLEST, (0.01, 0.04), "reproduced"),
        ({"rule": "above", "threshold": 0.5} | SMALLEST, (0.4, 0.52), "inconclusive"),
        ({"rule": "below"} | SMALLEST, (-0.04, 0.3), "no such effect"),
        ({"rule": "below"} | SMALLEST, (-0.05, 0.3), "inconclusive"),
        ({"rule": "within", "low": 0.9, "high": 1.1}, (0.95, 1.05), "reproduced"),
        ({"rule": "within", "low": 0.9, "high": 1.1}, (1.2, 1.3), "contradicted"),
        ({"rule": "within", "low": 0.9, "high": 1.1}, (0.1, 0.2), "contradicted"),
        ({"rule": "within", "low": 0.9, "high": 1.1}, (0.8, 1.0), "inconclusive"),
        ({"rule": "within", "low": 0.9, "high": 1.1}, (1.0, 1.2), "inconclusive"),
        ({"rule": "within", "low": 0.9, "high": 1.1}, (0.8, 1.2), "inconclusive"),
    ],
)
def test_every_verdict_rule(rule, ci, verdict):
    judged = claims.judge(claim(**rule), "cpu", estimate=sum(ci) / 2, ci=ci)
    assert judged.verdict == verdict


def test_a_scale_that_cannot_test_says_so_whatever_the_estimate_and_the_gates():
    only_gpu, shut = claim(profiles=("gpu",)), claims.measure(gate(), "cpu", estimate=-1.0)
    assert claims.judge(only_gpu, "cpu").verdict == "needs the gpu profile"
    assert claims.judge(only_gpu, "cpu", estimate=1.0, ci=(0.9, 1.1)).verdict == "needs the gpu profile"
    assert claims.judge(only_gpu, "cpu", failed_gates=[shut]).verdict == "needs the gpu profile"
    assert claims.judge(only_gpu, "gpu", estimate=1.0, ci=(0.9, 1.1)).verdict == "reproduced"
    assert claims.judge(claim(profiles=("cpu", "gpu")), "smoke").verdict == "needs the cpu profile"


def test_a_failed_gate_takes_the_verdict_and_is_kept_with_its_number():
    shut = claims.measure(gate(threshold=0.5, unit="of tokens"), "cpu", estimate=0.17, ci=(0.1, 0.6))
    judged = claims.judge(claim(gates=("g",)), "cpu", estimate=1.0, ci=(0.9, 1.1), failed_gates=[shut])
    assert (judged.verdict, judged.estimate) == ("not testable here", 1.0)
    assert judged.failed_gates == ({"id": "g", "estimate": 0.17, "rule": "≥ 0.5 of tokens"},)
    words = "not testable here (gate g is 0.17, not ≥ 0.5 of tokens)"
    assert claims.verdict_in_words(judged.as_dict()) == words
    assert claims.judge(claim(gates=("g",)), "cpu", failed_gates=[shut]).verdict == "not testable here"


def test_an_effect_that_is_not_there_is_told_with_its_size():
    judged = claims.judge(claim(unit="nats", **SMALLEST), "cpu", estimate=0.0, ci=(-0.02, 0.02))
    assert claims.verdict_in_words(judged.as_dict()) == "no such effect (none of 0.05 nats or more)"


def test_results_are_judged_again_by_todays_rules_and_their_finding_told_anew():
    one, shut, gpu = claim(**SMALLEST), claim(id="shut", gates=("g",)), claim(id="gpu", profiles=("gpu",))
    failed = claims.measure(gate(threshold=0.5), "cpu", estimate=0.17)
    told = [
        claims.judge(claim(), "cpu", estimate=0.01, ci=(-0.02, 0.04)),
        claims.judge(shut, "cpu", estimate=1.0, ci=(0.9, 1.1), failed_gates=[failed]),
        claims.judge(gpu, "cpu"),
    ]
    content = {"claims": [t.as_dict() for t in told], "checks": [], "gates": [failed.as_dict()], "metrics": {"m": 2.0}}
    assert content["claims"][0]["verdict"] == "inconclusive"
    today = paper(claims=(one, shut, gpu), gates=(gate(threshold=0.5),), finding="{m:.0f}: {c:verdict}, {g:.2f}")
    again = claims.judged_again(content | {"finding": "old"}, today)
    assert [c["verdict"] for c in again["claims"]] == ["no such effect", "not testable here", "needs the gpu profile"]
    assert again["finding"] == "2: no such effect, 0.17"


BAND = {"rule": "within", "low": 0.9, "high": 1.1}


@pytest.mark.parametrize(
    ("rule", "estimate", "ci", "check_passes", "gate_passes"),
    [
        ({"rule": "above"}, 0.1, (0.05, 0.2), True, True),
        ({"rule": "above"}, 0.1, (-0.1, 0.3), False, True),
        ({"rule": "above"}, 0.0, (0.0, 0.0), True, True),
        ({"rule": "above"}, -0.1, (-0.2, 0.1), False, False),
        ({"rule": "below"}, -0.1, (-0.2, -0.05), True, True),
        ({"rule": "below"}, -0.1, (-0.3, 0.1), False, True),
        ({"rule": "below"}, 0.0, (0.0, 0.0), True, True),
        ({"rule": "below"}, 0.1, (-0.1, 0.2), False, False),
        (BAND, 1.0, (0.9, 1.1), True, True),
        (BAND, 1.0, (0.8, 1.0), False, True),
        (BAND, 1.0, (1.0, 1.2), False, True),
        (BAND, 1.2, (1.15, 1.3), False, False),
        (BAND, 0.8, (0.7, 0.85), False, False),
    ],
)
def test_a_check_is_held_by_its_whole_interval_and_a_gate_by_its_estimate(
    rule, estimate, ci, check_passes, gate_passes
):
    assert claims.measure(check(**rule), "cpu", estimate=estimate, ci=ci).passed is check_passes
    assert claims.measure(gate(**rule), "cpu", estimate=estimate, ci=ci).passed is gate_passes
    assert claims.measure(check(**rule), "cpu", estimate=estimate).passed is gate_passes, "a number alone decides"


def test_a_check_is_judged_only_in_its_profiles():
    only_cpu = check(profiles=("cpu", "gpu"))
    assert claims.measure(only_cpu, "smoke", estimate=-1.0).passed is None
    assert claims.measure(only_cpu, "cpu", estimate=-1.0).passed is False
    assert claims.measure(only_cpu, "interactive", estimate=1.0).passed is True


@pytest.mark.parametrize("number", [{"estimate": float("nan")}, {"estimate": 1.0, "ci": (2.0, 1.0)}])
def test_a_check_needs_finite_ordered_numbers(number):
    with pytest.raises(TenfoldError, match=r"check 'k'.*not finite or not ordered"):
        claims.measure(check(), "cpu", **number)


def test_interactive_runs_are_judged_like_the_default_profile():
    assert claims.judge(claim(), "interactive", estimate=1.0, ci=(0.9, 1.1)).verdict == "reproduced"


def test_a_testable_claim_needs_an_estimate():
    with pytest.raises(TenfoldError, match="can be tested under 'cpu'"):
        claims.judge(claim(), "cpu")


@pytest.mark.parametrize("ci", [(float("nan"), 1.0), (1.0, 0.0), (0.0, float("inf"))])
def test_an_interval_must_be_finite_and_ordered(ci):
    with pytest.raises(TenfoldError, match="not finite or not ordered"):
        claims.judge(claim(), "cpu", estimate=0.5, ci=ci)


@pytest.mark.parametrize(
    "options", [{"threshold": None}, {"rule": "within"}, {"rule": "within", "low": 2.0, "high": 1.0}]
)
def test_a_rule_without_its_numbers_is_refused(options):
    with pytest.raises(ValidationError, match="needs"):
        claim(**options)


def test_an_unknown_key_in_a_paper_record_is_refused():
    with pytest.raises(ValidationError):
        claim(verdict="reproduced")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"claims": [claim()], "checks": [check(id="c")]}, "a claim and a check share the id 'c'"),
        ({"checks": [check(id="g")], "gates": [gate()]}, "a check and a gate share the id 'g'"),
        ({"claims": [claim(), claim()]}, "share the id"),
        ({"claims": [claim(gates=("gg",))], "gates": [gate()]}, "claim 'c' names the gate 'gg'; did you mean 'g'"),
        ({"finding": "It is {c:nonsense}."}, "no format of a number"),
        ({"finding": "It is {c."}, "expected '}'"),
        ({"finding": "It is {}."}, "{name}"),
        ({"headline": "It is {cc}"}, r"place {cc} is no {claim}"),
        ({"headline": "It is {c:verdict}"}, r"place {c:verdict} is no {claim}"),
    ],
)
def test_a_record_that_does_not_hang_together_is_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        paper(**options)


@pytest.mark.parametrize(
    "options",
    [{"profiles": ("gpus",)}, {"smallest_effect": 0.1}, {"planned_count": "64"}]
    + [{"smallest_effect": effect, "planned_count": "64"} for effect in (0, -1)],
)
def test_a_claims_scales_and_its_power_are_checked(options):
    with pytest.raises(ValidationError):
        claim(**options)


def outcomes():
    judged = claims.judge(claim(), "cpu", estimate=0.12345, ci=(0.1, 0.2))
    unknown = claims.judge(claim(id="later", profiles=("gpu",)), "cpu")
    return {"c": judged, "later": unknown, "k": claims.measure(check(), "cpu", estimate=-2.0)}


@pytest.mark.parametrize(
    ("finding", "filled"),
    [
        ("", ""),
        ("No place, {{braces}}.", "No place, {braces}."),
        ("{c} and {c:.1%}", "0.123 and 12.3%"),
        ("{c:ci}: {c:verdict}", "0.123 [0.1, 0.2]: reproduced"),
        ("{k:ci} {k:verdict}", "-2 failed"),
        ("{win rate 0.3:.2f} of {n:.0f}", "0.50 of 64"),
        ("{later}, {later:ci}: {later:verdict}", "not measured, not measured: needs the gpu profile"),
    ],
)
def test_a_finding_is_filled(finding, filled):
    assert claims.fill(finding, {"win rate 0.3": 0.5, "n": 64.0}, outcomes()) == filled


@pytest.mark.parametrize(
    ("finding", "message"),
    [
        ("{cc}", r"\{cc\} cannot be filled: 'cc' is neither"),
        ("{n:ci}", "'n' is a metric, not a claim"),
        ("{n:verdict}", "'n' is a metric, not a claim"),
    ],
)
def test_a_place_that_nothing_fills_is_refused(finding, message):
    with pytest.raises(TenfoldError, match=message):
        claims.fill(finding, {"n": 64.0}, outcomes())


def test_results_from_before_checks_and_findings_are_readable(tmp_path):
    (tmp_path / "results.json").write_text('{"claims": [], "checks": [{"id": "k"}]}')
    read = claims.read(tmp_path / "results.json")
    assert read == {"claims": [], "checks": [{"id": "k"}], "gates": [], "finding": ""}


def test_an_unknown_claim_names_the_nearest():
    with pytest.raises(TenfoldError, match="did you mean 'gap-widens'"):
        papers.load("lorc").claim("gap-widen")


def test_what_is_not_a_claim_says_what_it_is():
    record = paper(checks=[check()], gates=[gate()])
    with pytest.raises(TenfoldError, match=r"'k' is a check of paper.toml, not a claim: use run.check"):
        record.claim("k")
    with pytest.raises(TenfoldError, match=r"no gate 'x' in paper.toml"):
        record.gate("x")
