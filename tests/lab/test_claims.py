import pytest
from pydantic import ValidationError

from lib import TenfoldError
from lib.lab import claims, papers
from lib.lab.papers import ClaimRecord


def claim(**options):
    return ClaimRecord(
        **({"id": "c", "quote": "q", "place": "p", "estimate": "e", "rule": "above", "threshold": 0.0} | options)
    )


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
        ({"rule": "within", "low": 0.9, "high": 1.1}, (0.95, 1.05), "reproduced"),
        ({"rule": "within", "low": 0.9, "high": 1.1}, (1.2, 1.3), "contradicted"),
        ({"rule": "within", "low": 0.9, "high": 1.1}, (0.1, 0.2), "contradicted"),
        ({"rule": "within", "low": 0.9, "high": 1.1}, (0.8, 1.0), "inconclusive"),
        ({"rule": "within", "low": 0.9, "high": 1.1}, (0.8, 1.2), "inconclusive"),
    ],
)
def test_every_verdict_rule(rule, ci, verdict):
    judged = claims.judge(claim(**rule), "cpu", estimate=sum(ci) / 2, ci=ci)
    assert judged.verdict == verdict


def test_a_scale_that_cannot_test_says_so_whatever_the_estimate():
    only_gpu = claim(profiles=("gpu",))
    assert claims.judge(only_gpu, "cpu").verdict == "not tested at this scale"
    assert claims.judge(only_gpu, "cpu", estimate=1.0, ci=(0.9, 1.1)).verdict == "not tested at this scale"
    assert claims.judge(only_gpu, "gpu", estimate=1.0, ci=(0.9, 1.1)).verdict == "reproduced"


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


def test_an_unknown_claim_names_the_nearest():
    with pytest.raises(TenfoldError, match="did you mean 'gap-widens'"):
        papers.load("lorc").claim("gap-widen")
