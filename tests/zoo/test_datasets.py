import json
import zipfile

import pandas as pd
import pytest

from lib import TenfoldError
from lib.zoo import datasets, load_dataset


@pytest.mark.parametrize("cut", [1, 5, 17, 40])
def test_every_complete_record_of_a_truncated_file_is_kept(tmp_path, cut):
    records = [{"id": str(i), "conversations": [{"from": "human", "value": "é" * i}]} for i in range(20)]
    whole = json.dumps(records, ensure_ascii=False).encode()
    path = tmp_path / "cut.json"
    path.write_bytes(whole[:-cut])
    assert list(datasets.complete_records(path)) == (records if cut == 1 else records[:-1])


def test_sharegpt_is_whole_and_its_splits_do_not_share_a_conversation():
    everything = load_dataset("sharegpt", split="all")
    assert len(everything) == 17_671
    assert set(everything.column_names) == {"id", "conversations"}
    identities = {split: load_dataset("sharegpt", split=split)["id"] for split in ("train", "test")}
    assert len(identities["train"]) + len(identities["test"]) == len(everything)
    conversations = {split: {name.rsplit("_", 1)[0] for name in names} for split, names in identities.items()}
    assert not conversations["train"] & conversations["test"]
    assert 0.08 < len(identities["test"]) / len(everything) < 0.12


def test_a_limit_takes_the_first_rows():
    three = load_dataset("sharegpt", split="test", limit=3)
    assert three["id"][:2] == load_dataset("sharegpt", split="test", limit=2)["id"][:]
    assert three[0]["conversations"][0].keys() == {"from", "value"}


def test_evals_rows_share_their_tasks_instruction():
    rows = load_dataset("evals", split="all").to_pandas()
    assert set(rows.columns) == {"task", "instruction", "input", "ideals"}
    assert rows.groupby("task")["instruction"].nunique().eq(1).all()
    assert rows["task"].nunique() > 250
    assert rows["instruction"].str.strip().ne("").all()
    assert rows["ideals"].map(len).ge(1).mean() > 0.99


def test_the_table_of_evals_is_made_where_nothing_was_made_yet(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "made_once", lambda name: tmp_path / "not" / "there" / name)
    rows = [{"task": "t", "instruction": "Do it.", "input": "x", "ideals": ["a"]}]
    monkeypatch.setattr(datasets, "_tasks", lambda wheel: {"t": rows})
    path = datasets._evals_table()
    assert pd.read_parquet(path)["input"].tolist() == ["x"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_processes_that_make_the_table_of_evals_at_once_do_not_meet(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "made_once", lambda name: tmp_path / name)
    rows = [{"task": "t", "instruction": "Do it.", "input": "x", "ideals": ["a"]}]
    monkeypatch.setattr(datasets, "_tasks", lambda wheel: {"t": rows})
    write, seen = pd.DataFrame.to_parquet, []

    def write_while_another_does(frame, path, **options):
        write(frame, path, **options)
        seen.append(path)
        if len(seen) == 1:
            datasets._evals_table()

    monkeypatch.setattr(pd.DataFrame, "to_parquet", write_while_another_does)
    path = datasets._evals_table()
    assert (len(set(seen)), pd.read_parquet(path)["input"].tolist()) == (2, ["x"])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_folders_unknown_split_is_one_sentence_and_its_colon_no_configuration(tmp_path):
    folder = tmp_path / "c:mine"  # as a drive's on Windows
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"a": 1}\n{"a": 2}\n', encoding="utf8")
    assert load_dataset(str(folder))["a"][:] == [1, 2]
    with pytest.raises(TenfoldError, match=r"has no such rows \(Unknown split \"nope\""):
        load_dataset(str(folder), split="nope")


def test_odd_rows_of_evals_drop_the_row_or_the_task(tmp_path):
    chat = [{"role": "system", "content": "Do it."}, {"role": "user", "content": "x"}]
    files = {
        "good": [{"input": chat, "ideal": "a"}, {"input": "no chat", "ideal": "b"}, {"input": chat, "ideal": ["a", 2]}],
        "two-instructions": [
            {"input": chat, "ideal": "a"},
            {"input": [{"role": "system", "content": "Or that."}, chat[1]], "ideal": "a"},
        ],
        "few-shot": [{"input": [*chat, {"role": "assistant", "content": "y"}], "ideal": "a"}],
        "no-answer": [{"input": chat}],
    }
    wheel = tmp_path / "evals.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for task, rows in files.items():
            text = "\n".join(json.dumps(row) for row in rows) + "\nnot json\n"
            archive.writestr(f"evals/registry/data/{task}/samples.jsonl", text)
    tasks = datasets._tasks(wheel)
    assert set(tasks) == {"good"}
    assert [row["ideals"] for row in tasks["good"]] == [["a"], ["a", "2"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sharegpt", "validation"), "has no split 'validation': use one of train, test, all"),
        (("sharegpt", "train", 0), "limit = 0 keeps nothing"),
        (("sharegp",), "did you mean 'sharegpt'"),
        (("someone/data",), "'someone/data' is not in the local Hugging Face cache"),
    ],
)
def test_bad_requests_are_one_sentence(arguments, message):
    with pytest.raises(TenfoldError, match=message):
        load_dataset(*arguments)
