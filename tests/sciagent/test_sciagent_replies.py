"""Replies of a larger model: what the notebook asks is recorded, and replayed without a model or for other tools."""

import dataclasses
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from lib import TenfoldError
from lib.core.chat import ChatFailed, Decoding, Recorder, Replayer, Reply, write_replies
from lib.core.store import Journal
from lib.sciagent import Toolset
from lib.sciagent.retriever import Index
from lib.sciagent.study import evaluation, free_questions, replies, results, retrieval


class Writer:
    """Plans by naming the question's first word, and writes the right program where a function is shown."""

    model = replies.MODEL

    def __init__(self, questions):
        self.programs, self.asked = {q.text: q.program for q in questions}, 0

    def complete(self, messages, decoding=None, *, attempt=0):
        return self.complete_many([messages], decoding)[0]

    def complete_many(self, questions, decoding=None, *, attempt=0):
        self.asked += len(questions)
        return [Reply((self._said(q),), ("stop",)) for q in questions]

    def _said(self, question):
        if not isinstance(question, str):
            return f"{question[-1]['content'].split()[0]} number\nand more"
        (program,) = [p for text, p in self.programs.items() if text in question]
        return "answer = -1" if "Functions:\nnone" in question else f"```python\n{program}\n```"


@pytest.fixture
def recorded(monkeypatch, warm, tools, tmp_path):
    """Questions, and what a writer who knows the answers has recorded for them."""
    monkeypatch.setattr(replies, "LIBRARIES", ("ht", "numpy_financial"))
    monkeypatch.setattr(replies, "POSED", 5)
    monkeypatch.setattr(replies, "Sandbox", lambda **_: nullcontext(warm))
    questions = replies.posed(tools, warm)
    writer, journal = Writer(questions), Journal(tmp_path / "replies.sqlite")
    replies.record(Recorder(writer, journal))
    asked = writer.asked
    replies.record(Recorder(writer, journal))  # nothing is asked twice
    assert writer.asked == asked == len(free_questions.questions("test")) + len(tools) + 3 * len(questions)
    write_replies(tmp_path / "replies.gz", journal)
    chat = Replayer(tmp_path / "replies.gz", replies.MODEL)
    monkeypatch.setattr(replies, "chat_of", lambda name: chat if name == "recorded" else None)
    return questions, chat


def test_recorded_plans_and_programs_are_replayed_and_scored(recorded, tools, warm):
    questions, chat = recorded
    freely = [question for question, _ in free_questions.questions("test")]
    assert replies.plans_by(chat, freely) == [f"{question.split()[0]} number" for question in freely]
    showing, action = replies.showings(tools, questions), replies.action("recorded", dtype="float32", device="cpu")
    assert all(len(names) == replies.SHOWN for names in showing["retrieved"])
    right = {
        condition: [row["right"] for row in evaluation.score(action, questions, names, tools, warm)]
        for condition, names in showing.items()
    }
    assert all(right["gold"])
    assert not any(right["none"])


def test_a_question_is_worded_for_each_function_that_was_asked_about(recorded, tools):
    _, chat = recorded
    own = next(iter(tools))
    stranger = dataclasses.replace(own, name="stranger", summary="Something else.")
    assert replies.questions_by(chat, [own, stranger]) == {own.name: f"{own.indexed().split()[0]} number"}
    assert replies.questions_by(None, [own]) == {}
    down = SimpleNamespace(complete_many=lambda asked, _: [ChatFailed("m", "down", paid=False) for _ in asked])
    assert replies.questions_by(down, [own]) == {}


def test_what_tunes_a_retriever_holds_worded_questions_beside_those_of_the_documentation(recorded, tools):
    questions, _ = recorded
    searched = []

    def search(queries):
        searched.extend(queries)
        return [[own.name, *(tool.name for tool in list(tools)[:3])] for _ in queries]

    own = list(tools)[5]
    queries, positives, negatives = retrieval.lessons(questions, {own.name: "How fast?"}, tools, search)
    assert len(queries) == len(positives) == len(negatives) == 2 * len(questions) + 1
    assert (queries[-1], positives[-1]) == ("How fast?", own.indexed())
    assert own.indexed() not in negatives[-1]
    assert len(negatives[-1]) == 3
    assert searched == queries


def test_ranks_are_by_retriever_and_way_to_ask():
    class Fixed(Index):
        names = ["a", "b", "c"]

        def scores(self, queries):
            return torch.tensor([[3.0, 2, 1] if query == "x" else [1.0, 2, 3] for query in queries])

    found = retrieval.ranks_of({"one": [Fixed(), Fixed()]}, {"question": ["x", "y"]}, [["a"], ["a"]])
    assert found["one", "question"].tolist() == [[1, 3], [1, 3]]
    (row,) = retrieval.hit_table(found).to_dict("records")
    assert (row["retriever"], row["query"], row["hit@1"], row["hit@3"]) == ("one", "question", 0.5, 1.0)
    assert row["MRR"] == pytest.approx(2 / 3)


def test_a_recording_is_for_its_own_tools_and_questions(recorded, tools):
    questions, chat = recorded
    assert replies.recorded("recorded", tools, questions)
    shown = set(replies.showings(tools, questions)["retrieved"][0]) - {name for q in questions for name in q.functions}
    fewer = Toolset.from_records([record for record in tools.records() if record["name"] not in shown])
    assert not replies.recorded("recorded", fewer, questions)
    assert replies.recorded("", fewer, questions)  # nobody to ask: nothing is missing
    assert replies.recorded("smollm2-135m-instruct", fewer, questions)  # it writes here
    with pytest.raises(TenfoldError, match="holds no reply"):
        replies.plans_by(chat, ["Another question?"])


def test_a_local_model_replies_to_questions_and_dialogues():
    chat = replies.local("smollm2-135m-instruct")
    settings = Decoding(temperature=0.0, max_tokens=3)
    both = chat.complete_many(["Who?", replies.to_name("Who?")], settings)
    assert both[0] == chat.complete("Who?", settings)
    assert both[0].text != both[1].text
    assert chat.model == "smollm2-135m-instruct"


def test_science_tasks_are_counted_by_condition(monkeypatch):
    monkeypatch.setattr(results, "solved", lambda task, value: value == task["answer"])
    tasks = [{"task": name, "function": "f", "answer": 1} for name in ("beams", "beams", "acids")]
    got = [
        {"value": value, "functions": functions, "program": ""} for value, functions in ((1, ["f"]), (2, []), (1, []))
    ]
    found = results.science(tasks, {"retrieved": got, "none": got[::-1]})
    table = results.science_table(found).set_index("task")
    assert table.loc["beams"].to_dict() == {"retrieved": 0.5, "none": 0.5, "function among three": 0.5}
    assert table.loc["acids"].to_dict() == {"retrieved": 1.0, "none": 1.0, "function among three": 0.0}


def test_a_way_to_ask_is_the_question_or_the_question_and_a_plan():
    asking = retrieval.with_plans(["a?", "b?"], {"plan": ["A", "B"]})
    assert asking == {"question": ["a?", "b?"], "question + plan": ["a? A", "b? B"]}
