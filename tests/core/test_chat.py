"""The chat client against a scripted local server: retries, failures, budgets, recordings."""

import base64
import gzip
import io
import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from PIL import Image

from lib import TenfoldError
from lib.core.chat import (
    NO_COMPLETION,
    NO_CONNECTION,
    TIME_OUT,
    Chat,
    ChatClient,
    ChatFailed,
    Decoding,
    Recorder,
    Replayer,
    Reply,
    reply_key,
    user_message,
    write_replies,
)
from lib.core.store import BudgetExceeded, Journal


def client(server, **settings):
    return ChatClient(model="m", url=server.url, **({"pause": 0.0} | settings))


def test_a_question_is_sent_as_the_protocol_says_and_its_reply_read(chat_server, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    logprobs = [{"token": "hi", "logprob": -0.1, "top_logprobs": [{"token": "ho", "logprob": -2.5}]}]
    choice = {"message": {"content": "hi"}, "finish_reason": "length", "logprobs": {"content": logprobs}}
    chat_server.script = [{"choices": [choice], "usage": {"completion_tokens": 9}}]
    decoding = Decoding(temperature=0, top_p=1, max_tokens=8, stop=("\n",), seed=3, logprobs=5, extra={"top_k": 1})
    asking = client(chat_server, key_variable="SOME_KEY", decoding=decoding)
    assert asking.complete("p") == Reply(("hi",), ("length",), 9, (logprobs,))
    assert chat_server.asked == [
        {
            "model": "m", "messages": [{"role": "user", "content": "p"}], "temperature": 0, "top_p": 1, "max_tokens": 8,
            "stop": ["\n"], "seed": 3, "logprobs": True, "top_logprobs": 5, "top_k": 1,
        }
    ]  # fmt: skip
    assert chat_server.paths == ["/v1/chat/completions"]
    assert chat_server.headers[0]["Authorization"] == "Bearer secret"
    assert "secret" not in repr(asking) + repr(dict(asking.journal.items()))
    monkeypatch.delenv("SOME_KEY")
    dialogue = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    assert asking.complete(dialogue, Decoding(n=2)).texts == ("reply 2",) * 2
    assert chat_server.asked[1] == {"model": "m", "messages": dialogue, "temperature": 1.0, "n": 2}
    assert "Authorization" not in chat_server.headers[1]
    assert isinstance(asking, Chat)


def test_images_travel_as_png(chat_server):
    image = Image.new("RGB", (3, 2), (250, 0, 7))
    client(chat_server).complete([user_message("Which?", [image, image])])
    text, *images = chat_server.asked[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "Which?"}
    head, data = images[1]["image_url"]["url"].split(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == image.tobytes()


def test_an_address_comes_from_the_environment_or_is_refused(chat_server, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", f"{chat_server.url}/")
    assert ChatClient(model="m").complete("p").text == "reply 1"
    monkeypatch.delenv("OPENAI_BASE_URL")
    for url in ("", "localhost"):
        with pytest.raises(ValueError, match="is no endpoint"):
            ChatClient(model="m", url=url)
    with pytest.raises(ValueError, match="at least 1"):
        client(chat_server, tries=0)


def test_what_may_pass_is_asked_again(chat_server):
    broken = [503, 429, 529, b"<html>", {"choices": []}, chat_server.wire(b"nonsense\r\n\r\n")]
    broken.append(chat_server.wire(b'HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"choices"'))
    chat_server.script = [*broken, "late"]
    assert client(chat_server, tries=8).complete("p").text == "late"
    assert len(chat_server.asked) == 8


@pytest.mark.parametrize(
    ("answer", "reason", "asked"),
    [
        (500, "500 Internal Server Error", 2), (400, "400 Bad Request", 1), (b"[]", NO_COMPLETION, 2),
        ({"choices": [{"message": {"content": None}}]}, NO_COMPLETION, 2), (401, "401 Unauthorized", 1),
    ],
)  # fmt: skip
def test_a_failure_says_why_in_one_sentence(chat_server, answer, reason, asked):
    chat_server.script = [answer, answer]
    with pytest.raises(ChatFailed, match="gave no completion") as failed:
        client(chat_server, tries=2).complete("p")
    assert (failed.value.reason, failed.value.final) == (reason, answer == 401)
    assert "\n" not in str(failed.value)
    assert len(chat_server.asked) == asked


def test_a_slow_server_and_an_absent_one_are_told_apart(chat_server):
    chat_server.script = [chat_server.delay(5, "slow")]
    with pytest.raises(ChatFailed) as failed:
        client(chat_server, tries=1, seconds=0.1).complete("p")
    assert (failed.value.reason, failed.value.paid) == (TIME_OUT, True)
    with pytest.raises(ChatFailed, match="check that it runs") as failed:
        ChatClient(model="m", url="http://127.0.0.1:9/v1", tries=2, pause=0).complete("p")
    assert (failed.value.reason, failed.value.paid) == (NO_CONNECTION, False)


@pytest.mark.parametrize("as_date", [False, True])
def test_a_busy_server_says_when_to_come_again(chat_server, as_date, monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    after = format_datetime(datetime.now(UTC) + timedelta(seconds=31), usegmt=True) if as_date else "30"
    chat_server.script = [(429, {"Retry-After": after}), (503, {"Retry-After": "3600"}), 503]
    client(chat_server, pause=1).complete("p")
    assert slept[0] == pytest.approx(30, abs=2)
    assert slept[1] == 120
    assert 3 <= slept[2] <= 5  # the third pause of one second that doubles, give or take a quarter


def test_one_failure_stops_no_corpus(chat_server):
    def answer(request):
        asked = request["messages"][-1]["content"]
        return 400 if asked == "question 3" else f"to {asked}"

    chat_server.answer = answer
    asking = client(chat_server, concurrency=4)
    replies = asking.complete_many([f"question {i}" for i in range(20)])
    assert [r.reason if isinstance(r, ChatFailed) else r.text for r in replies] == [
        "400 Bad Request" if i == 3 else f"to question {i}" for i in range(20)
    ]
    asking.complete_many([f"question {i}" for i in range(20)])
    assert len(chat_server.asked) == 21  # what was answered is not asked again


def test_a_refusal_for_good_stops_and_keeps_what_was_answered(chat_server):
    chat_server.script = ["one", "two", 401]
    asking = client(chat_server, concurrency=1)
    with pytest.raises(ChatFailed, match="401 Unauthorized"):
        asking.complete_many(["a", "b", "c", "d", "e"])
    assert chat_server.questions == ["a", "b", "c"]
    assert [row["texts"] for row in asking.journal.values()] == [["one"], ["two"]]


def test_no_more_requests_run_at_once_than_the_limit_allows(chat_server):
    running, most = [], []

    class Watched(ChatClient):
        def _posted(self, request, idempotency_key):
            running.append(1)
            most.append(len(running))
            time.sleep(0.01)
            running.pop()
            return Reply(("x",), ("stop",))

    asking = Watched(model="m", url=chat_server.url, concurrency=3)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda t: asking.complete_many([f"{t} {i}" for i in range(6)]), range(4)))
    assert (max(most), len(most)) == (3, 24)


def test_nothing_is_asked_twice_also_after_a_restart(chat_server, tmp_path):
    first = client(chat_server, journal=Journal(tmp_path / "j"))
    assert first.complete("p").text == first.complete("p").text == "reply 1"
    again = client(chat_server, journal=Journal(tmp_path / "j", budget=1))
    assert again.complete("p").text == "reply 1"
    with pytest.raises(BudgetExceeded, match="0 of 1 are left"):
        again.complete("p", attempt=1)
    assert len(chat_server.asked) == 1
    assert first.complete("p", attempt=1).text == "reply 2"
    assert first.complete("p", Decoding(temperature=0.5)).text == "reply 3"
    sent = [headers["Idempotency-Key"] for headers in chat_server.headers]
    assert len(set(sent)) == 3
    client(chat_server).complete("p")
    assert chat_server.headers[-1]["Idempotency-Key"] not in sent  # another journal draws anew


def test_a_name_that_gave_no_completion_is_not_used_again_by_a_later_process(chat_server, tmp_path):
    first = client(chat_server, journal=Journal(tmp_path / "j"), tries=1)
    for _ in range(2):  # as if the process had ended between two tries
        chat_server.script = [b"no completion"]
        with pytest.raises(ChatFailed, match="no completion"):
            first.complete("p")
    again = client(chat_server, journal=Journal(tmp_path / "j"), tries=1)
    chat_server.script = [503, "reply"]
    with pytest.raises(ChatFailed, match="503"):
        again.complete("p")
    assert again.complete("p").text == "reply"
    sent = [headers["Idempotency-Key"] for headers in chat_server.headers]
    assert len(set(sent)) == 3
    assert sent[2] == sent[3]  # a busy server has answered nothing: the same name


def test_a_budget_counts_what_may_have_been_paid(chat_server):
    journal = Journal(budget=4, token_budget=200)
    asking = client(chat_server, journal=journal, seconds=0.2, purpose="judge", decoding=Decoding(max_tokens=50, n=2))
    chat_server.script = [503, chat_server.delay(5, "lost"), b"no completion", ["a", "b"]]
    asking.complete("p")
    assert (journal.purposes(), journal.tokens_spent) == ({"judge": 3}, 10)  # the 503 was not paid
    sent = [headers["Idempotency-Key"] for headers in chat_server.headers]
    assert sent[0] == sent[1] == sent[2] != sent[3]  # what was read and was no completion must not come again
    chat_server.script = [400]
    with pytest.raises(ChatFailed):
        asking.complete("q")
    assert (journal.spent, journal.tokens_spent) == (3, 10)
    with pytest.raises(BudgetExceeded, match="200 tokens were asked for, but 190"):
        asking.complete("q", Decoding(max_tokens=100, n=2))
    with pytest.raises(BudgetExceeded, match="1 calls were asked for, but 0 of 4"):
        asking.complete_many(["r", "s", "t"])
    assert journal.spent == 4


def test_a_token_budget_holds_without_max_tokens_and_for_servers_that_count_none(chat_server):
    asking = client(chat_server, journal=Journal(token_budget=8))  # the scripted server counts five a reply
    asking.complete("a")
    asking.complete("b")
    with pytest.raises(BudgetExceeded, match="1 tokens were asked for, but 0 of 8 are left"):
        asking.complete("c")
    chat_server.script = [{"choices": [{"message": {"content": "x"}}]}]
    asking = client(chat_server, journal=Journal(token_budget=20))
    assert asking.complete("a", Decoding(max_tokens=12)).tokens == 0
    assert asking.journal.tokens_spent == 12
    assert len(chat_server.asked) == 3


def test_a_key_is_sent_without_its_line_end_and_refused_where_no_header_holds_it(chat_server):
    client(chat_server, key="secret\r\n").complete("p")
    assert chat_server.headers[0]["Authorization"] == "Bearer secret"
    asking = client(chat_server, key="“secret”")
    with pytest.raises(ChatFailed, match=r"a key with characters that no request can hold.*and the key") as failed:
        asking.complete_many(["p", "q"])
    assert (failed.value.final, failed.value.paid, asking.journal.spent) == (True, False, 0)
    assert "secret" not in str(failed.value)
    assert len(chat_server.asked) == 1


def test_half_a_surrogate_pair_stops_no_corpus(chat_server):
    questions = ["ü 語", "a broken \ud83d smile", "q"]
    replies = client(chat_server, concurrency=1).complete_many(questions)
    assert [reply.text for reply in replies] == ["reply 1", "reply 2", "reply 3"]
    assert chat_server.questions == questions


def test_a_stop_that_is_a_text_is_not_split_into_its_letters():
    assert Decoding(stop="END").request()["stop"] == Decoding(stop=("END",)).request()["stop"] == ["END"]
    assert "stop" not in Decoding(stop="").request()


def test_a_failure_comes_out_of_a_worker_process_as_it_went_in():
    failure = ChatFailed("http://a/v1", "401 Unauthorized", status=401, paid=False)
    failure.wait = 3.0
    again = pickle.loads(pickle.dumps(failure))
    assert (str(again), vars(again)) == (str(failure), vars(failure))


def test_texts_are_cleaned_before_they_are_kept(chat_server, tmp_path):
    chat_server.script = ["mail a@b.org"]
    journal = Journal(tmp_path / "j")
    asking = client(chat_server, journal=journal, clean=lambda text: text.replace("a@b.org", "[e-mail]"))
    assert asking.complete("p").text == "mail [e-mail]"
    assert [row["texts"] for row in journal.values()] == [["mail [e-mail]"]]


def test_recorded_replies_need_no_server(chat_server, tmp_path):
    chat_server.script = ["one\u2028line", ["b", "c"]]
    live = client(chat_server, journal=Journal(tmp_path / "j"))
    two = Decoding(n=2, seed=1)
    said = [live.complete("a"), live.complete("b", two)]
    assert write_replies(tmp_path / "deep" / "replies.jsonl.gz", live.journal) == 2
    write_replies(tmp_path / "again.gz", live.journal)
    path = tmp_path / "deep" / "replies.jsonl.gz"
    assert path.read_bytes() == (tmp_path / "again.gz").read_bytes()
    replayer = Replayer(path, "m")
    assert isinstance(replayer, Chat)
    assert [replayer.complete("a"), replayer.complete("b", two)] == said
    assert replayer.complete_many(["a", "a"]) == said[:1] * 2
    for missing in (Replayer(path, "other").complete, lambda text: replayer.complete(text, attempt=1)):
        with pytest.raises(TenfoldError, match=r'holds no reply of (other|m) to "a" with these settings'):
            missing("a")
    with pytest.raises(TenfoldError, match="are not there"):
        Replayer(tmp_path / "none", "m")
    for damaged in (path.read_bytes()[:40], b"plain", path.read_bytes()[:60] + b"????" + path.read_bytes()[64:]):
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(TenfoldError, match="cannot be read"):
            Replayer(tmp_path / "damaged", "m")


def test_recorded_replies_of_another_writer_may_hold_unicodes_line_separators(tmp_path):
    row = {
        "key": reply_key("m", "a", Decoding()),
        "texts": ["x\u2028y\x85z"],
        "finish": [],
        "tokens": 1,
        "logprobs": [],
    }
    lines = f"{json.dumps(row, ensure_ascii=False)}\r\n\n"
    (tmp_path / "r.gz").write_bytes(gzip.compress(lines.encode("utf8")))
    assert Replayer(tmp_path / "r.gz", "m").complete("a").text == "x\u2028y\x85z"


def test_a_local_models_replies_are_recorded_by_the_same_keys(tmp_path):
    class Local:
        model, asked = "local", 0

        def complete(self, messages, decoding=None, *, attempt=0):
            self.asked += 1
            return Reply((f"{messages} {decoding.temperature} {attempt}",), ("stop",), 4)

    local = Local()
    recorder = Recorder(local, Journal(tmp_path / "j"), Decoding(temperature=0.2))
    assert [recorder.complete("q").text, recorder.complete("q").text] == ["q 0.2 0"] * 2
    assert recorder.complete("q", attempt=1).tokens == 4
    assert local.asked == 2
    write_replies(tmp_path / "r.gz", recorder.journal)
    assert Replayer(tmp_path / "r.gz", "local", decoding=Decoding(temperature=0.2)).complete("q").text == "q 0.2 0"


class Failing:
    """Answers all questions but those named, at its own temperature, until it is stopped."""

    model, decoding, concurrency = "local", Decoding(temperature=0.2), 2

    def __init__(self, *failing, most=1000):
        self.failing, self.most, self.asked = failing, most, []

    def complete(self, messages, decoding=None, *, attempt=0):
        return self.complete_many([messages], decoding)[0]

    def complete_many(self, questions, decoding=None, *, attempt=0):
        self.asked += questions
        if len(self.asked) > self.most:
            raise KeyboardInterrupt
        failed = ChatFailed("u", "too long", paid=False)
        return [failed if q in self.failing else Reply((f"{q} {decoding.temperature}",)) for q in questions]


def test_a_failure_and_an_interruption_cost_a_recording_no_other_reply():
    questions, journal = [f"q{i}" for i in range(40)], Journal()
    failing = Failing("q3")
    for _ in range(2):
        with pytest.raises(ChatFailed, match="too long"):
            Recorder(failing, journal).complete_many(questions)
    assert (len(journal), failing.asked) == (39, [*questions, "q3"])
    journal = Journal()
    with pytest.raises(KeyboardInterrupt):
        Recorder(Failing(most=39), journal).complete_many(questions)
    assert len(journal) == 32  # what was asked together before


def test_a_recorder_without_settings_asks_with_those_of_its_chat():
    recorder = Recorder(Failing(), Journal())
    assert [recorder.complete("q").text, recorder.complete_many(["p"])[0].text] == ["q 0.2", "p 0.2"]
    assert reply_key("local", "q", Decoding(temperature=0.2)) in recorder.journal
    assert Recorder(Failing(), Journal(), Decoding(temperature=0.5)).complete("q").text == "q 0.5"


def test_a_key_depends_on_model_messages_settings_and_attempt():
    same = reply_key("m", [{"role": "user", "content": "q"}], Decoding())
    assert reply_key("m", "q", Decoding(n=1)) == same
    others = [
        reply_key("m2", "q", Decoding()),
        reply_key("m", "q2", Decoding()),
        reply_key("m", "q", Decoding(seed=0)),
        reply_key("m", "q", Decoding(), 1),
        reply_key("m", [{"role": "system", "content": "q"}], Decoding()),
    ]
    assert len({same, *others}) == 6
    assert json.dumps(Decoding().request()) == '{"temperature": 1.0}'
