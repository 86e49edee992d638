"""Recorded replies: everything that the notebook asks is recorded once, in parts, and replayed without a model."""

import pytest

from lib import TenfoldError
from lib.autoinstruct.study import replies
from lib.autoinstruct.tasks import make_tasks
from lib.core.chat import Recorder, Replayer, Reply, complete_all, write_replies
from lib.core.store import Journal


class Writer:
    """Answers with the number of the question, and breaks after so many."""

    model = replies.MODEL

    def __init__(self, most=10_000):
        self.most, self.asked = most, 0

    def complete(self, messages, decoding=None, *, attempt=0):
        return self.complete_many([messages], decoding)[0]

    def complete_many(self, questions, decoding=None, *, attempt=0):
        if self.asked + len(questions) > self.most:
            raise KeyboardInterrupt
        numbers = range(self.asked, self.asked + len(questions))
        self.asked += len(questions)
        return [Reply(tuple(f"Way {n}.{i}" for i in range(decoding.n)), ("stop",) * decoding.n) for n in numbers]


def rows():
    return [
        {"task": f"t{k:02}", "instruction": f"Add {k} to it.", "input": f"{i} of {k}", "ideals": [str(i)]}
        for k in range(7)
        for i in range(13)
    ]


@pytest.fixture
def tasks(monkeypatch):
    monkeypatch.setattr(replies, "suite_rows", rows)
    monkeypatch.setattr(replies, "VARIED_TASKS", 2)
    return make_tasks(rows(), replies.RULE)[0]


def test_a_recording_goes_on_where_it_stopped_and_replays_without_a_model(tasks, tmp_path):
    journal = Journal(tmp_path / "replies.sqlite")
    with pytest.raises(KeyboardInterrupt):
        replies.record(Recorder(Writer(most=47), journal))
    kept = len(journal)
    assert kept == 24 + 18 + 4  # six tasks of two parts, the seventh's first
    write_replies(tmp_path / "part.gz", journal)
    part = Replayer(tmp_path / "part.gz", replies.MODEL)
    there = [replies.answered(part, replies.questions_of(task), replies.decoding()) for task in tasks]
    assert there == [True] * 6 + [False]

    again = Writer()
    replies.record(Recorder(again, journal))
    assert again.asked == 7 * 7 + 7 * replies.FLY_EXAMPLES + 2 * 7 - kept
    replies.record(Recorder(Writer(most=0), journal))  # nothing is asked twice
    write_replies(tmp_path / "replies.gz", journal)
    chat = Replayer(tmp_path / "replies.gz", replies.MODEL)
    options = {"samples": replies.SAMPLES, "max_tokens": replies.LONGEST, "seed": replies.SEED}
    for task in tasks:
        made = replies.written(chat, task, **options)
        assert len(made) == 8
        assert {c.origin for c in made[1:]} == {"model"}
        complete_all(chat, [replies.on_the_fly(task, e.input) for e in task.examples[:2]], replies.decoding(n=1))
    varied = complete_all(chat, replies.variation_questions(chat, tasks[1]), replies.decoding(n=replies.VARIANTS))
    assert {len(reply.texts) for reply in varied} == {replies.VARIANTS}
    with pytest.raises(TenfoldError, match="holds no reply"):
        replies.written(chat, tasks[0], **(options | {"seed": 1}))
