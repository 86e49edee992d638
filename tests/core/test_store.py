"""The journal: what was kept is there after a crash, and a budget holds across threads, processes and kills."""

import _thread
import multiprocessing
import os
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lib import TenfoldError
from lib.core import store
from lib.core.store import BudgetExceeded, Journal, key_of


@pytest.fixture(params=["memory", "disk"])
def journal(request, tmp_path):
    with Journal(None if request.param == "memory" else tmp_path / "deep" / "journal.sqlite", budget=10) as kept:
        yield kept


def test_entries_stay_in_order_of_insertion_and_can_be_replaced(journal):
    journal.put("b", {"x": [1, 2.5, None, "ü"]})
    journal.put_many([("a", 1), ("c", float("inf"))])
    journal.put("b", 2)
    assert list(journal) == ["b", "a", "c"]
    assert dict(journal.items()) == {"b": 2, "a": 1, "c": float("inf")}
    assert list(journal.values()) == [2, 1, float("inf")]
    assert (journal["a"], journal.get("z"), "z" in journal, "a" in journal, len(journal)) == (1, None, False, True, 3)
    with pytest.raises(KeyError, match="z"):
        journal["z"]
    with pytest.raises(TypeError, match="not JSON serializable"):
        journal.put_many({"d": 1, "e": {1}})
    assert len(journal) == 3


def test_another_journal_on_the_same_file_sees_everything(tmp_path):
    first, second = Journal(tmp_path / "j"), Journal(tmp_path / "j")
    first.put("a", 1)
    assert second["a"] == 1
    first.spend(2, "x")
    assert (second.spent, second.left) == (2, float("inf"))
    assert pickle.loads(pickle.dumps(first))["a"] == 1
    with pytest.raises(TypeError, match="stays in its process"):
        pickle.dumps(Journal())


def test_keys_depend_on_every_part_and_not_on_the_order_of_a_mapping():
    assert key_of("m", {"a": 1, "b": 2}) == key_of("m", {"b": 2, "a": 1})
    keys = [key_of("m"), key_of("m", ""), key_of("m", 0), key_of("m", 1), key_of("m", {"a": 1}), key_of(["m"])]
    assert len(set(keys)) == len(keys)
    assert (
        key_of(0, 1, "text") == "ea82042ac8632fd21304b6465504d612"
    )  # published results draw their random numbers by it
    with pytest.raises(TypeError):
        key_of({1, 2})


def test_a_budget_is_refused_before_it_is_passed(journal):
    journal.spend(7, "seed")
    journal.spend(2, "label")
    journal.spend(0)
    with pytest.raises(BudgetExceeded, match="2 calls were asked for, but 1 of 10 are left"):
        journal.spend(2)
    assert (journal.spent, journal.left, journal.purposes()) == (9, 1, {"seed": 7, "label": 2, "": 0})
    with pytest.raises(ValueError, match="-1 cannot be spent"):
        journal.spend(-1)
    with pytest.raises(ValueError, match="a budget of -3 is negative"):
        Journal(budget=-3)


def test_a_smaller_budget_than_was_spent_refuses_the_next_call_only(tmp_path):
    Journal(tmp_path / "j", budget=5).spend(4)
    poor = Journal(tmp_path / "j", budget=3)
    assert (poor.spent, poor.left) == (4, 0)
    with pytest.raises(BudgetExceeded, match="1 calls were asked for, but 0 of 3 are left"):
        poor.spend(1)


def test_a_paid_call_is_asked_once_and_its_failures_stay_counted(journal):
    asked = []

    def ask():
        asked.append(1)
        return [len(asked)]

    assert [journal.once("k", ask, purpose="p") for _ in range(3)] == [[1]] * 3
    assert (len(asked), journal.spent) == (1, 1)

    def fails():
        raise RuntimeError("down")

    with pytest.raises(RuntimeError, match="down"):
        journal.once("other", fails)
    assert (journal.spent, "other" in journal) == (2, False)

    def refused():
        error = RuntimeError("busy")
        error.paid = False
        raise error

    with pytest.raises(RuntimeError, match="busy"):
        journal.once("other", refused, calls=3)
    assert journal.spent == 2
    with pytest.raises(TypeError, match="JSON"):
        journal.once("other", lambda: {1})
    assert journal.once("other", ask, calls=2) == [2]
    with pytest.raises(BudgetExceeded):
        journal.once("more", ask, calls=6)
    assert (len(asked), journal.spent, journal.purposes()) == (2, 5, {"p": 1, "": 4})


def test_tokens_are_set_aside_and_then_counted_as_used():
    journal = Journal(token_budget=100)
    seen = []

    def ask():
        seen.append(journal.tokens_spent)
        return "four words are here"

    journal.once("a", ask, tokens=90, tokens_of=lambda text: len(text.split()))
    assert (seen, journal.tokens_spent, journal.tokens_left) == ([90], 4, 96)
    with pytest.raises(BudgetExceeded, match="97 tokens were asked for, but 96 of 100 are left"):
        journal.once("b", ask, tokens=97)


def test_a_token_budget_that_is_spent_refuses_calls_that_name_no_number_of_tokens():
    journal = Journal(token_budget=8)
    for key in ("a", "b"):  # the last may pass the budget: nobody knew how long it would be
        journal.once(key, lambda: "four words are here", tokens_of=lambda text: len(text.split()) + 1)
    with pytest.raises(BudgetExceeded, match="1 tokens were asked for, but 0 of 8 are left"):
        journal.once("c", lambda: pytest.fail("must not be asked"), tokens_of=len)
    assert (journal.once("a", lambda: None), journal.spent, journal.tokens_spent) == ("four words are here", 2, 10)
    assert journal.once("no tokens are counted", lambda: 1) == 1


def test_threads_that_want_one_key_wait_for_the_one_that_asks(journal):
    asked = []

    def ask():
        asked.append(threading.get_ident())
        time.sleep(0.05)
        return 7

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda _: journal.once("k", ask), range(8))) == [7] * 8
    assert (len(asked), journal.spent) == (1, 1)


def spend_until_refused(path, way, spent):
    """Spend from eight threads one call after the other; put the number of calls that were allowed."""
    journal = Journal(path, budget=100)

    def run(thread):
        allowed = 0
        while True:
            try:
                if way == "spend":
                    journal.spend()
                else:
                    journal.once(f"{os.getpid()} {thread} {allowed}", os.getpid)
            except BudgetExceeded:
                return allowed
            allowed += 1

    with ThreadPoolExecutor(8) as threads:
        spent.put(sum(threads.map(run, range(8))))


@pytest.mark.parametrize(("start", "way"), [("fork", "spend"), ("spawn", "once")])
def test_eight_threads_in_two_processes_spend_exactly_the_budget(tmp_path, start, way):
    context = multiprocessing.get_context(start)
    spent = context.Queue()
    processes = [context.Process(target=spend_until_refused, args=(tmp_path / "j", way, spent)) for _ in range(2)]
    for process in processes:
        process.start()
    assert sum(spent.get(timeout=120) for _ in processes) == 100
    for process in processes:
        process.join()
    assert Journal(tmp_path / "j").spent == 100
    assert len(Journal(tmp_path / "j")) == (0 if way == "spend" else 100)


def test_a_forked_process_opens_the_file_anew(tmp_path):
    journal = Journal(tmp_path / "j", budget=9)
    journal.put("parent", 1)
    child = multiprocessing.get_context("fork").Process(target=lambda: journal.put("child", os.getpid()))
    child.start()
    child.join()
    journal.put("after", 1)
    assert dict(journal.items()) == {"parent": 1, "child": child.pid, "after": 1}


def test_a_parent_that_closes_its_journal_takes_nothing_from_its_children(tmp_path):
    """Sqlite in a forked process takes the parent's locks for its own unless the parent closes its files before."""
    fork, parent = multiprocessing.get_context("fork"), Journal(tmp_path / "j")
    parent.put("parent", 1)
    wrote, closed = fork.Event(), fork.Event()

    def work():
        mine = Journal(tmp_path / "j")
        mine.put("before", 1)
        wrote.set()
        closed.wait(30)
        mine.put("after", 1)
        os.kill(os.getpid(), signal.SIGKILL)

    child = fork.Process(target=work)
    child.start()
    assert wrote.wait(30)
    assert len(parent) == 2
    parent.close()
    closed.set()
    child.join()
    assert list(Journal(tmp_path / "j")) == ["parent", "before", "after"]


def test_an_interruption_while_it_waits_for_the_lock_does_not_keep_the_lock(tmp_path, monkeypatch):
    """Python raises KeyboardInterrupt once sqlite has returned, and then the transaction has begun."""
    monkeypatch.setattr(store, "LOCK_SECONDS", 5)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    journal, another = Journal(tmp_path / "j"), Journal(tmp_path / "j")
    holding = another._transaction()
    holding.__enter__()

    def interrupt():
        time.sleep(0.2)
        _thread.interrupt_main()
        time.sleep(0.2)
        another._database.execute("commit")

    try:
        interrupting = threading.Thread(target=interrupt)
        interrupting.start()
        with pytest.raises(KeyboardInterrupt):
            journal.put("a", 1)
        interrupting.join()
    finally:
        signal.signal(signal.SIGINT, before)
    third = Journal(tmp_path / "j")
    third.put("b", 2)  # the file is not locked …
    journal.put("c", 3)  # … and the journal that was interrupted goes on
    assert dict(third.items()) == {"b": 2, "c": 3}


def test_a_closed_journal_says_so_and_not_that_its_file_should_be_moved_away(tmp_path):
    with Journal(tmp_path / "j") as journal:
        journal.put("paid", 1)
    with pytest.raises(TenfoldError, match=r"j was closed: open it anew"):
        journal["paid"]
    assert Journal(tmp_path / "j")["paid"] == 1


def test_a_journal_that_is_gone_has_closed_its_file(tmp_path):
    Journal(tmp_path / "j").put("a", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["j"]  # the write-ahead log goes with the last connection


def test_a_file_that_is_no_journal_is_one_sentence(tmp_path):
    (tmp_path / "old.jsonl").write_text('{"key": "a", "reply": "b"}\n' * 100)
    with pytest.raises(TenfoldError, match=r"old\.jsonl is no journal .*earlier versions wrote JSON lines"):
        Journal(tmp_path / "old.jsonl")
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        other.execute("create table t (x)")
    with pytest.raises(TenfoldError, match="another program's database"):
        Journal(tmp_path / "other.sqlite")
    (tmp_path / "file").write_text("")
    with pytest.raises(TenfoldError, match="cannot write to"):
        Journal(tmp_path / "file" / "j")
    with pytest.raises(TenfoldError, match="cannot be used"):
        Journal(tmp_path)


def test_a_reservation_whose_process_is_gone_is_taken_over_and_counted_again(tmp_path):
    journal = Journal(tmp_path / "j")
    with journal._transaction() as database:
        there = (os.getppid(), store._started(os.getppid()), time.time())
        database.execute("insert into reservations values ('k', 'o', ?, ?, ?, ?)", (store.socket.gethostname(), *there))
        assert journal._reserved(database, "k")  # its process is there
        database.execute("update reservations set started = started - 60")
        assert not journal._reserved(database, "k")  # its number belongs to a later process by now
        database.execute("update reservations set host = 'elsewhere'")
        assert journal._reserved(database, "k")  # nobody here can look
        database.execute("update reservations set time = time - 601")
        assert not journal._reserved(database, "k")
    journal.spend(1)
    assert journal.once("k", lambda: "answer") == "answer"
    assert journal.spent == 2


class Billing(BaseHTTPRequestHandler):
    """Bills every key once, as servers that honour an Idempotency-Key do, and writes down every request."""

    def do_GET(self):
        with self.server.lock:
            self.server.requests.append(self.path[1:])
            self.server.bills.setdefault(self.path[1:], f"answer to {self.path[1:]}")
        time.sleep(0.002)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.bills[self.path[1:]].encode())

    def log_message(self, *_):
        pass


CLIENT = """
import sys, urllib.request
from concurrent.futures import ThreadPoolExecutor
from lib.core.store import Journal

path, url, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
journal = Journal(path, budget=500)

def answer(i):
    return journal.once(f"key-{i}", lambda: urllib.request.urlopen(f"{url}/key-{i}").read().decode())

with ThreadPoolExecutor(4) as threads:
    list(threads.map(answer, range(count)))
"""


def test_kill_9_at_random_moments_loses_no_answer_and_pays_for_none_twice(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Billing)
    server.lock, server.requests, server.bills = threading.Lock(), [], {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    path, url, draw = tmp_path / "j", f"http://127.0.0.1:{server.server_port}", random.Random(0)
    root, kills, kept = Path(store.__file__).parents[2], 0, 0

    def client(keys):
        return subprocess.Popen([sys.executable, "-c", CLIENT, str(path), url, str(keys)], cwd=root)

    try:
        while kills < 20:
            before = len(server.requests)
            running = client(kept + 16)
            while len(server.requests) == before:  # it has begun to ask
                time.sleep(0.001)
            time.sleep(draw.random() * 0.02)
            running.send_signal(signal.SIGKILL)
            kills += running.wait() != 0
            recorded = len(Journal(path))
            assert recorded >= kept  # nothing that was recorded is lost
            kept = recorded
        assert client(kept + 16).wait() == 0
    finally:
        server.shutdown()
        server.server_close()
    journal, keys = Journal(path), kept + 16
    assert dict(journal.items()) == server.bills  # every paid answer is there, and every key was billed once
    assert sorted(journal) == sorted(f"key-{i}" for i in range(keys))
    assert keys <= len(server.requests) <= keys + 4 * kills  # only what was in flight at a kill was asked for again
    assert len(server.requests) <= journal.spent <= keys + 4 * kills  # the count errs on the safe side
