"""ROUGE-L and exact match against hand values, and against rouge-score itself."""

import pytest
from rouge_score.rouge_scorer import RougeScorer

from lib.autoinstruct.metrics import exact_match, first_line, rouge_l


def test_rouge_against_hand_values():
    assert rouge_l("the cat sat", ["the cat sat down"]) == pytest.approx(2 * 1 * 0.75 / 1.75)
    assert rouge_l("dog", ["cat"]) == 0
    assert rouge_l("b a", ["a b"]) == pytest.approx(0.5)  # the longest common subsequence has one word


def test_punctuation_scores_nothing():
    assert rouge_l("[7]", ["[1]"]) == 0
    assert rouge_l("1.", ["[1]"]) == 1
    assert rouge_l("", ["[1]"]) == 0


def test_the_sign_of_a_number_is_part_of_it():
    assert rouge_l("-5", ["5"]) == 0
    assert rouge_l("\u22125.", ["[-5]"]) == 1
    assert not exact_match("(1, -2)", ["(1, 2)"])
    assert exact_match("2020-01-02", ["2020 01 02"])  # a hyphen is no sign
    assert rouge_l("3 - 5", ["3 5"]) == 1


def test_answers_of_signs_only_are_compared_as_they_are():
    assert rouge_l("<=", ["<="]) == 1
    assert rouge_l(">=", ["<="]) == 0
    assert not exact_match(">=", ["<="])


def test_the_best_reference_counts():
    assert rouge_l("Paris", ["Lyon", "paris!"]) == 1
    assert exact_match("Paris.", ["Lyon", "paris"])


def test_plain_words_score_as_rouge_score_does():
    scorer = RougeScorer(["rougeL"])
    for output, reference in [("a quick brown fox", "the quick fox"), ("one two", "two one two")]:
        assert rouge_l(output, [reference]) == pytest.approx(scorer.score(reference, output)["rougeL"].fmeasure)


def test_letters_outside_ascii_count():
    assert rouge_l("ne\u00f1e", ["ne\u00f1o"]) == 0


def test_the_first_line_with_something_in_it():
    assert first_line("\n  Paris \nis it") == "Paris"
    assert first_line("") == ""


@pytest.mark.parametrize("measure", [rouge_l, exact_match])
def test_no_reference_is_refused(measure):
    with pytest.raises(ValueError, match="at least one reference"):
        measure("x", [])
