"""Tasks and the suite: what is taken and why not, rows kept apart, splits that share no task and no family."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lib import TenfoldError
from lib.autoinstruct.labelling import Label
from lib.autoinstruct.study import suite
from lib.autoinstruct.study.suite import above_chance, families, folds, held_out, information, tasks_needed
from lib.autoinstruct.tasks import Rule, make_tasks, read_jsonl

RULE = Rule(demonstrations=2, screening=2, examples=2)


def rows(name="sums", instruction="Add the numbers.", count=8, answer=str, **names):
    return [
        {"task": name, "instruction": instruction, "input": f"{i} + 1", "ideals": [answer(i + 1)]} for i in range(count)
    ]


def test_rows_of_a_task_are_kept_apart_and_demonstrations_show_different_answers():
    (task,), left_out = make_tasks(rows(answer=lambda i: "odd" if i % 4 == 1 else "even"), RULE)
    assert left_out == {}
    parts = [
        [d.input for d in task.demonstrations],
        [e.input for e in task.screening],
        [e.input for e in task.examples],
    ]
    assert [len(part) for part in parts] == [2, 2, 2]
    assert len(set().union(*parts)) == 6
    assert {d.output for d in task.demonstrations} == {"odd", "even"}


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (rows(instruction="Translate into French."), "not English"),
        (rows(name="french-sums"), "not English"),
        (rows(instruction="Additionne les nombres, s'il te pla\u00eet."), "not English"),
        (rows(count=5), "too few short rows"),
        (rows(answer=lambda i: "x" * 80), "too few short rows"),
        (rows(answer=lambda i: "yes"), "one answer to everything"),
        (rows(instruction="word " * 200), "instruction too long"),
        (rows() + rows(name="other", instruction="add the  numbers"), "instruction shared with another task"),
    ],
)
def test_each_reason_to_leave_a_task_out(made, reason):
    tasks, left_out = make_tasks(made, RULE)
    assert tasks == []
    assert set(left_out) == {reason}


def test_natural_instructions_columns_and_a_users_json_lines(tmp_path):
    made = [
        {"task_name": "t", "definition": "Say it.", "inputs": str(i), "targets": str(i % 3), "id": i} for i in range(9)
    ]
    assert make_tasks(made, RULE)[0][0].instruction == "Say it."
    path = tmp_path / "mine.jsonl"
    path.write_text('{"task": "t", "instruction": "Say it.", "input": "1", "answer": "2"}\n\n')
    assert read_jsonl(path)[0]["answer"] == "2"
    path.write_text("{}\nnot json\n")
    with pytest.raises(TenfoldError, match="line 2"):
        read_jsonl(str(path))


def test_numbers_are_taken_as_texts():
    made = [{"task": 7, "instruction": "Double it.", "input": i, "answer": 2 * i} for i in range(9)]
    (task,), _ = make_tasks(made, RULE)
    assert task.name == "7"
    assert all(example.answers == (str(2 * int(example.input)),) for example in task.examples)


def test_bad_rows_are_named():
    with pytest.raises(TenfoldError, match="no answers"):
        make_tasks([{"task": "t", "instruction": "x", "input": "y"}])
    with pytest.raises(TenfoldError, match="no input"):
        make_tasks([{"task": "t", "instruction": "x", "input": None, "answer": "z"}])
    with pytest.raises(TenfoldError, match="several instructions"):
        make_tasks(rows() + rows(instruction="Subtract the numbers."))


def test_a_model_that_ignores_the_input_has_no_information_whatever_answers_it_prefers():
    preferences = np.array([-0.1, -3.0, -0.1, -5.0])  # of each answer, after any input
    table = np.tile(preferences, (4, 1))
    np.testing.assert_allclose(information(table, ["a", "b", "a", "c"]), 0, atol=1e-12)
    table[1, 1] += 1.5  # the second row's own answer becomes likelier after its own input
    np.testing.assert_allclose(information(table, ["a", "b", "a", "c"]), [0, 1.5, 0, 0], atol=1e-12)
    assert len(information(table, ["a"] * 4)) == 0


def test_above_chance_is_by_standard_errors_and_power_by_the_normal_law():
    columns = ["task", "information", "error"]
    frame = pd.DataFrame([("chance", 0.1, 0.2), ("good", 0.5, 0.1), ("best", 0.5, 0.05)], columns=columns)
    assert above_chance(frame) == ["good", "best"]
    assert above_chance(frame, errors=6) == ["best"]
    assert tasks_needed(0.1, 0.028) == 101
    gains = np.random.default_rng(0).normal(0.028, 0.1, size=(4000, 101))
    error = gains.std(1, ddof=1) / 101**0.5
    assert (gains.mean(1) > 1.984 * error).mean() == pytest.approx(0.8, abs=0.02)


def test_language_names_are_words_and_calculating_is_english():
    assert make_tasks(rows(instruction="Add, calculating a romantic sum."), RULE)[0]
    assert make_tasks(rows(name="sums_in_latin"), RULE)[1] == {"not English": 1}


def test_few_answers_are_a_classification_and_its_labels_the_choices():
    (task,), _ = make_tasks(rows(answer=lambda i: "ab"[i % 2]), RULE)
    assert task.labels == ("a", "b")
    assert task.others(task.examples[0]) == tuple({"a", "b"} - {task.examples[0].answers[0]})
    (task,), _ = make_tasks(rows(), RULE)
    assert task.labels == ()
    others = task.others(task.examples[0], most=3)
    assert len(set(others)) == 3
    assert task.examples[0].answers[0] not in others


def test_big_bench_hard_and_natural_instructions_become_tasks_of_their_own(monkeypatch, tmp_path):
    asked = []

    def hub(name, split):
        asked.append(name)
        return [{"input": f"case {i}", "target": "ab"[i % 2]} for i in range(8)]

    monkeypatch.setattr(suite, "stream_dataset", hub)
    made, left_out = make_tasks(suite.suite_rows("bbh", "test"), replace(RULE, curated=True))
    assert len(asked) == len(made) == 27
    assert not left_out
    assert all(name.startswith(f"{suite.BBH}:") for name in asked)
    for number, (category, language) in enumerate([("Word Analogy", "English"), ("Misc.", "English"), ("x", "Hindi")]):
        instances = [{"input": f"q{i}", "output": [str(i)]} for i in range(8)]
        task = {"Definition": ["Do", f"it {number}."], "Categories": [category], "Instances": instances}
        task |= {"Input_language": [language], "Output_language": [language]}
        (tmp_path / f"task00{number}_x.json").write_text(json.dumps(task))
    made, _ = make_tasks(suite.suite_rows(str(tmp_path)), RULE)
    assert [(t.name, t.instruction, t.category) for t in made] == [
        ("task000_x", "Do it 0.", "Word Analogy"),
        ("task001_x", "Do it 1.", "Misc."),
    ]
    assert held_out(made, suite.TEST_CATEGORIES) == [["task000_x"]]
    with pytest.raises(ValueError, match="held out"):
        held_out(made, ["Code to Text"])


def several():
    made = []
    for i, text in enumerate(
        [
            "Convert the colour red to hex.",
            "Convert the colour paint to hex.",
            "Add two numbers quickly.",
            "Name a capital city.",
            "Spell this backwards.",
        ]
    ):
        made += rows(name=f"task{i}", instruction=text)
    return make_tasks(made, RULE)[0]


def test_alike_instructions_are_one_family():
    numbers = families(several())
    assert numbers[0] == numbers[1]
    assert len(set(numbers)) == 4


@pytest.mark.parametrize("seed", range(5))
def test_a_split_never_shares_a_task_or_a_family(seed):
    tasks = several()
    parts = folds(tasks, 2, seed=seed)
    assert sorted(name for part in parts for name in part) == [task.name for task in tasks]
    assert not set(parts[0]) & set(parts[1])
    assert any({"task0", "task1"} <= set(part) for part in parts)
    with pytest.raises(ValueError, match="fewer folds"):
        folds(tasks, 9)


def test_screening_tells_a_task_that_the_model_can_do_from_one_that_it_guesses(monkeypatch):
    """A scripted model that adds one to the first word of an input of `sums`, and prefers short answers otherwise."""

    def scripted(model, tokenizer, pairs, *, max_new_tokens, **_):
        assert max_new_tokens == 0

        def log_prob(pair, answer):
            knows = pair.instruction == "Add the numbers." and answer == str(int(pair.input.split()[0]) + 1)
            return -0.5 if knows else -2.0 - len(answer)

        return [
            Label(None, 0.0, 0.0, log_prob(pair, pair.answers[0]), 0.5, tuple(log_prob(pair, a) for a in pair.others))
            for pair in pairs
        ]

    monkeypatch.setattr(suite, "label", scripted)
    made = rows() + rows(name="guesses", instruction="Subtract one number from another.", answer=lambda i: "ab"[i % 2])
    frame = suite.screen(None, None, make_tasks(made, RULE)[0]).set_index("task")
    assert frame.loc["sums", "information"] == pytest.approx(2.5)
    assert frame.loc["guesses", "information"] == pytest.approx(0)
    assert frame.loc["sums", "log_prob"] == pytest.approx(-0.5)
    assert above_chance(frame.reset_index()) == ["sums"]


def test_a_row_may_hold_any_line_separator(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"input": "one\u2028two\x85three"}\n', encoding="utf8")
    assert read_jsonl(tmp_path / "rows.jsonl") == [{"input": "one\u2028two\x85three"}]
