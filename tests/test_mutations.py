"""Each core formula is held by a test: the list of mutants applies, and a part of it is run every time."""

from collections import Counter

import pytest

from lib import TenfoldError, root
from lib.lab import mutants, paths, provenance

ALL = mutants.load()
FEWEST = 5  # of each paper and of the lab


@pytest.mark.parametrize("mutant", ALL, ids=lambda m: f"{m.room}-{m.what}"[:60])
def test_every_mutation_applies_to_one_place_and_names_a_test(mutant):
    mutant.check(root())


def test_no_mutation_is_listed_twice():
    assert Counter((m.file, m.before, m.after) for m in ALL).most_common(1)[0][1] == 1


@pytest.mark.parametrize("room", [*paths.paper_notebooks(), "lab"])
def test_every_room_has_its_mutants(room):
    assert sum(m.room == room for m in ALL) >= FEWEST


def test_the_page_of_mutants_lists_all_of_them_as_caught():
    page = mutants.page().read_text(encoding="utf8")
    assert page == mutants.as_markdown([mutants.Outcome(m, "caught") for m in ALL]), "run `make mutants`"


@pytest.mark.timeout(900)
def test_this_commits_share_of_the_mutants_is_caught():
    outcomes = mutants.run(mutants.sample(ALL, provenance.commits()), workers=1, unmutated=False)
    assert [f"{o.mutant.what}: {o.state} {o.detail}" for o in outcomes if not o.caught] == []


def test_all_turns_together_meet_every_mutant_once():
    met = Counter(m for turn in range(mutants.SAMPLE) for m in mutants.sample(ALL, turn))
    assert set(met.values()) == {1}
    assert met.keys() == set(ALL)


def entry(**changes):
    usual = {
        "file": "lib/tempspec/metrics.py", "before": "/ (gamma * cost + verify)", "after": "/ (gamma * cost)",
        "what": "what", "test": "tests/tempspec/test_tempspec_distill.py::test_formulas_have_their_hand_values",
    }  # fmt: skip
    return mutants.Mutant(**(usual | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "lib/tempspec/gone.py"}, "lib/tempspec/gone.py is not there"),
        ({"before": "gamma"}, "times, not once"),
        ({"before": "no such line"}, "0 times, not once"),
        ({"before": "Theorem 3.8, tau", "after": "Theorem 3.8, theta"}, "changes no code"),
        ({"after": "/ (gamma * cost + verify)"}, "changes no code"),
        ({"after": "/ (gamma * cost + verify"}, "no Python"),
        ({"test": "tests/tempspec/test_tempspec_distill.py::test_gone"}, "there is no test"),
        ({"test": "tests/tempspec/test_tempspec_distill.py"}, "there is no test"),
    ],
)
def test_an_entry_that_does_not_apply_is_one_sentence(changes, message):
    with pytest.raises(TenfoldError, match=message):
        mutants.run([entry(**changes)])


def test_a_file_of_other_keys_is_refused(tmp_path):
    path = tmp_path / "mutations.toml"
    path.write_text('[[mutants]]\nfile = "lib/x.py"\nline = 3\n')
    with pytest.raises(TenfoldError, match=r"mutations.toml cannot be read.*before"):
        mutants.load(path)


@pytest.mark.timeout(300)
def test_a_mutant_that_no_test_notices_survives():
    harmless, harmful = entry(after="/ (verify + cost * gamma)"), entry()
    survivor, caught = mutants.run([harmless, harmful])
    assert (survivor.state, survivor.caught) == ("survived", False)
    assert (caught.state, caught.caught) == ("caught", True)
    assert "**survived**" in mutants.as_markdown([survivor, caught])
    assert "1 of 2 mutants are caught" in mutants.as_markdown([survivor, caught])


@pytest.mark.timeout(300)
def test_a_test_that_fails_as_it_is_catches_nothing(monkeypatch):
    says = "import sys\nfor _ in sys.stdin: print({}, flush=True)"
    monkeypatch.setattr(mutants, "SERVER", says.format(mutants.FAILED))
    (outcome,) = mutants.run([entry()])
    assert outcome.state == "the tests fail without a mutation"
    monkeypatch.setattr(mutants, "SERVER", says.format(4))  # pytest's status where there is no such test
    (outcome,) = mutants.run([entry()], unmutated=False)
    assert (outcome.state, outcome.caught) == ("pytest stopped with status 4", False)
    monkeypatch.setattr(mutants, "SERVER", "import sys; sys.exit(1)")
    with pytest.raises(TenfoldError, match="could not be started"):
        mutants.run([entry()], unmutated=False)
    monkeypatch.setattr(mutants, "SERVER", "import time; time.sleep(60)")
    monkeypatch.setattr(mutants, "SECONDS", 0.5)
    (outcome,) = mutants.run([entry()], unmutated=False)
    assert (outcome.state, outcome.caught) == ("the test did not end", False)


def test_what_is_tested_is_the_copy(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(mutants, "COPIED", ("pyproject.toml",))  # a copy without the package
    monkeypatch.setenv("PYTHONPATH", str(root()))
    with pytest.raises(TenfoldError, match="could not be started"):
        mutants.Copy(tmp_path / "copy").pytest(["tests"])
    assert "lib is imported from elsewhere" in capfd.readouterr().err
