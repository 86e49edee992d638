"""A keyed journal on sqlite: what was computed or paid for is there after a crash, and a budget holds for everybody.

Threads and processes of one machine share a file: every change is a transaction that holds the database's write lock,
is on disk when the call returns, and is either whole or absent after a crash. What is paid for is counted and reserved
*before* it is asked for, so that a crash can only count too much.
"""

import hashlib
import json
import math
import os
import socket
import sqlite3
import threading
import time
import uuid
import weakref
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, ValuesView
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from lib import TenfoldError, unwritable

APPLICATION = 0x54464A4E  # sqlite's application id of a journal ("TFJN")
LOCK_SECONDS = 120  # how long a transaction waits for another process's
LEASE_SECONDS = 600  # how long a reservation of another machine is believed; on this one its process is looked for
TABLES = """
create table entries (position integer primary key, key text unique not null, value text not null);
create table reservations (
    key text primary key, owner text, host text, process integer, started real, time real
);
create table journal (identity text not null);
create table spending (position integer primary key, purpose text unique not null, calls integer, tokens integer);
"""
LATER_TABLES = "create table if not exists unread (key text primary key, times integer not null)"


class BudgetExceeded(TenfoldError):
    """More calls or tokens were asked for than the budget has left; nothing was asked and nothing was counted."""


def key_of(*parts: object) -> str:
    """Hash what an entry depends on: texts as they are, everything else as JSON with sorted keys.

    Raises TypeError for a part that JSON cannot hold.
    """
    texts = [part if isinstance(part, str) else json.dumps(part, sort_keys=True) for part in parts]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:32]


class Journal(Mapping[str, Any]):
    """JSON values by key in order of insertion, and a count of what was spent; without a `path` both live in memory.

    `budget` and `token_budget` bound what the journal counts in all, by whomever and whenever it was spent. The file
    belongs on a disk of the machine, since sqlite's write-ahead log needs memory that its processes share. `identity`
    tells the journal from all others, wherever its file is moved.
    Raises ValueError for a negative budget, and TenfoldError for a file that is no journal or cannot be written.
    """

    def __init__(
        self, path: Path | str | None = None, *, budget: int | None = None, token_budget: int | None = None
    ) -> None:
        if min(budget or 0, token_budget or 0) < 0:
            raise ValueError(f"a budget of {min(budget or 0, token_budget or 0)} is negative: give 0 or more")
        self.path = None if path is None else Path(path)
        self.budget, self.token_budget = budget, token_budget
        self._open()

    # Entries ---------------------------------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> Any:
        row = self._one("select value from entries where key = ?", key)
        if row is None:
            raise KeyError(key)
        return json.loads(row[0])

    def __contains__(self, key: object) -> bool:
        return self._one("select 1 from entries where key = ?", key) is not None

    def __len__(self) -> int:
        return self._one("select count(*) from entries")[0]

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self._all()))

    def items(self) -> ItemsView[str, Any]:
        """Keys and values in order of insertion, read at once."""
        return self._all().items()

    def values(self) -> ValuesView[Any]:
        """Return the values in order of insertion, read at once."""
        return self._all().values()

    def put(self, key: str, value: Any) -> None:
        """Keep a value under a key, in place of one that is there; it is on disk when this returns."""
        self.put_many({key: value})

    def put_many(self, entries: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
        """Keep several values, all or none of them."""
        rows = [(key, json.dumps(value)) for key, value in dict(entries).items()]
        with self._transaction() as database:
            database.executemany(
                "insert into entries (key, value) values (?, ?) on conflict (key) do update set value = excluded.value",
                rows,
            )

    def _all(self) -> dict[str, Any]:
        with self._connected() as database:
            rows = database.execute("select key, value from entries order by position").fetchall()
        return {key: json.loads(value) for key, value in rows}

    def _one(self, query: str, *arguments: Any) -> Any:
        with self._connected() as database:
            return database.execute(query, arguments).fetchone()

    # Spending --------------------------------------------------------------------------------------------------------

    @property
    def spent(self) -> int:
        """Calls counted so far."""
        return self._one("select coalesce(sum(calls), 0) from spending")[0]

    @property
    def tokens_spent(self) -> int:
        """Tokens counted so far."""
        return self._one("select coalesce(sum(tokens), 0) from spending")[0]

    @property
    def left(self) -> int | float:
        """Calls that the budget still allows, infinitely many without one."""
        return math.inf if self.budget is None else max(0, self.budget - self.spent)

    @property
    def tokens_left(self) -> int | float:
        """Tokens that the budget still allows, infinitely many without one."""
        return math.inf if self.token_budget is None else max(0, self.token_budget - self.tokens_spent)

    def purposes(self) -> dict[str, int]:
        """Calls counted so far by what they were for."""
        with self._connected() as database:
            return dict(database.execute("select purpose, calls from spending order by position").fetchall())

    def spend(self, calls: int = 1, purpose: str = "", *, tokens: int = 0) -> None:
        """Count calls (and tokens) that are about to be made.

        Raises BudgetExceeded where they would pass the budget, and ValueError for a negative number.
        """
        if calls < 0 or tokens < 0:
            raise ValueError(f"{min(calls, tokens)} cannot be spent: what was spent stays counted")
        with self._transaction() as database:
            self._spend(database, calls, tokens, purpose)

    def _spend(
        self, database: sqlite3.Connection, calls: int, tokens: int, purpose: str, *, counted_later: bool = False
    ) -> None:
        query = "select coalesce(sum(calls), 0), coalesce(sum(tokens), 0) from spending"
        spent = database.execute(query).fetchone()
        least = tokens or int(counted_later)  # tokens that nobody bounds before: one at least must be left
        asked = ("calls", calls, self.budget), ("tokens", least, self.token_budget)
        for before, (unit, more, budget) in zip(spent, asked, strict=True):
            if budget is not None and more and before + more > budget:
                raise BudgetExceeded(
                    f"{more} {unit} were asked for, but {max(0, budget - before)} of {budget} are left: ask for fewer, "
                    "or raise the budget; what was answered so far is kept."
                )
        _count(database, calls, tokens, purpose)

    def unread(self, key: str) -> int:
        """Count of a key's answers that could not be read: the next is asked for under another name."""
        row = self._one("select times from unread where key = ?", key)
        return 0 if row is None else row[0]

    def count_unread(self, key: str) -> None:
        """Count one more such answer; it is on disk when this returns."""
        with self._transaction() as database:
            database.execute(
                "insert into unread values (?, 1) on conflict (key) do update set times = times + 1", (key,)
            )

    # Paid calls ------------------------------------------------------------------------------------------------------

    def once(
        self,
        key: str,
        ask: Callable[[], Any],
        *,
        calls: int = 1,
        purpose: str = "",
        tokens: int = 0,
        tokens_of: Callable[[Any], int] | None = None,
    ) -> Any:
        """Return the value of a key; where there is none, spend, reserve the key, `ask` and record, in this order.

        One of all threads and processes asks, the others wait for its answer. `tokens` are set aside, and replaced by
        `tokens_of(value)` when the answer is there; with `tokens_of` alone one token at least must be left. An
        exception of `ask` gives the key free and leaves its calls counted, or takes them back where it says
        `paid = False`. Raises BudgetExceeded before anything is asked.

        A process that dies while it asks leaves a reservation; the next to want the key sees that its owner is gone,
        and asks and counts once more. Whether the dead one's call was carried out nobody here can know: between the
        server's answer and the record of it an answer can be lost, and then be paid twice, unless the server knows the
        key again (`lib.core.chat` sends it as the Idempotency-Key). Every answer that was recorded is safe.
        """
        row = self._one("select value from entries where key = ?", key)
        if row is not None:
            return json.loads(row[0])
        owner = uuid.uuid4().hex
        _ASKING.add(owner)
        try:
            kept = self._claimed(key, owner, calls, tokens, purpose, counted_later=tokens_of is not None)
            if kept is not None:
                return json.loads(kept)
            try:
                value = ask()
                text, used = json.dumps(value), tokens if tokens_of is None else tokens_of(value)
                with self._transaction() as database:
                    database.execute("insert or replace into entries (key, value) values (?, ?)", (key, text))
                    database.execute("delete from reservations where key = ?", (key,))
                    _count(database, 0, used - tokens, purpose)
            except BaseException as error:
                with self._transaction() as database:
                    database.execute("delete from reservations where key = ?", (key,))
                    if getattr(error, "paid", True) is False:
                        _count(database, -calls, -tokens, purpose)
                raise
            return json.loads(text)
        finally:
            _ASKING.discard(owner)

    def _claimed(
        self, key: str, owner: str, calls: int, tokens: int, purpose: str, *, counted_later: bool
    ) -> str | None:
        """The text of a key's value, waited for where somebody else asks; None: the key is reserved for the owner."""
        pause = 0.005
        while True:
            with self._transaction() as database:
                row = database.execute("select value from entries where key = ?", (key,)).fetchone()
                if row is not None:
                    return row[0]
                if not self._reserved(database, key):
                    self._spend(database, calls, tokens, purpose, counted_later=counted_later)
                    here = (socket.gethostname(), os.getpid(), _started(os.getpid()), time.time())
                    database.execute(
                        "insert or replace into reservations values (?, ?, ?, ?, ?, ?)", (key, owner, *here)
                    )
                    return None
            time.sleep(pause)
            pause = min(0.2, pause * 1.5)

    def _reserved(self, database: sqlite3.Connection, key: str) -> bool:
        """Whether somebody who is still asking has reserved a key."""
        query = "select owner, host, process, started, time from reservations where key = ?"
        row = database.execute(query, (key,)).fetchone()
        if row is None:
            return False
        owner, host, process, started, since = row
        if host != socket.gethostname():
            return time.time() - since < LEASE_SECONDS
        if process == os.getpid() or self.path is None:
            return owner in _ASKING
        now = _started(process)
        return now is not None and abs(now - started) < 2  # seconds; otherwise the number went to another process

    # The database ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the file; a journal in memory is gone."""
        with self._lock:
            self._database.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Journal({str(self.path) if self.path else None!r}, budget={self.budget})"

    def __getstate__(self) -> dict[str, Any]:
        if self.path is None:
            raise TypeError("a journal in memory stays in its process: give it a path")
        return {name: value for name, value in vars(self).items() if name not in ("_database", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def __del__(self) -> None:
        # sqlite3 by itself waits for the garbage collector; where Python ends, the module may be gone before a journal.
        if (database := vars(self).get("_database")) is not None and sqlite3 is not None:
            with suppress(sqlite3.Error):
                database.close()

    def _open(self) -> None:
        self._lock = threading.RLock()
        self._connect()
        _JOURNALS[id(self)] = self

    def _connect(self) -> None:
        """Open the database, and write its tables where it is new."""
        try:
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                self.path or ":memory:", timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False
            )
            _until_unlocked(lambda: self._database.execute("pragma journal_mode = wal"))
            self._database.execute("pragma synchronous = full")
        except (sqlite3.Error, OSError) as error:
            raise self._refusal(error) from None
        with self._transaction() as database:
            (application,) = database.execute("pragma application_id").fetchone()
            if application not in (0, APPLICATION) or not application and _tables(database):
                raise self._refusal(sqlite3.DatabaseError("another program's database"))
            if not application:
                for statement in TABLES.split(";"):
                    database.execute(statement)
                database.execute("insert into journal values (?)", (uuid.uuid4().hex,))
                database.execute(f"pragma application_id = {APPLICATION}")
            database.execute(LATER_TABLES)
            (self.identity,) = database.execute("select identity from journal").fetchone()

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time; opened again after a fork."""
        with self._lock:
            if self._database is None:
                self._connect()
            try:
                yield self._database
            except sqlite3.Error as error:
                raise self._refusal(error) from None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the write lock against all threads and processes; commit at the end, or leave nothing."""
        with self._connected() as database:
            try:
                database.execute("begin immediate")  # an interruption while it waits is raised once the lock is held
                yield database
                database.execute("commit")
            except BaseException:
                if database.in_transaction:
                    database.execute("rollback")
                raise

    def _refusal(self, error: Exception) -> TenfoldError:
        if isinstance(error, OSError) and self.path is not None:
            return unwritable(self.path.parent, "its path", error)
        if isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
            return TenfoldError(f"the journal {self.path} was closed: open it anew to go on; what it holds is there.")
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(
            error, (sqlite3.OperationalError, sqlite3.ProgrammingError)
        ):
            return TenfoldError(
                f"{self.path} is no journal ({error}): earlier versions wrote JSON lines; move it away, and a new one "
                "is begun."
            )
        return TenfoldError(f"the journal {self.path} cannot be used ({error}): check its disk and its permissions.")


_ASKING: set[str] = set()  # owners of this process's reservations
_JOURNALS: weakref.WeakValueDictionary[int, Journal] = weakref.WeakValueDictionary()  # of this process, for its forks
_HELD: list[Journal] = []  # whose locks a fork holds


def _before_fork() -> None:
    """Close every file: sqlite in the child would take the parent's locks for its own, and lose what both write."""
    for journal in list(_JOURNALS.values()):
        journal._lock.acquire()
        _HELD.append(journal)
        with suppress(sqlite3.ProgrammingError):  # it was closed for good
            if journal.path is not None and journal._database is not None and not journal._database.in_transaction:
                journal._database.close()
                journal._database = None


def _after_fork() -> None:
    while _HELD:
        _HELD.pop()._lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


def _count(database: sqlite3.Connection, calls: int, tokens: int, purpose: str) -> None:
    database.execute(
        "insert into spending (purpose, calls, tokens) values (?, ?, ?) on conflict (purpose) do update set "
        "calls = calls + excluded.calls, tokens = tokens + excluded.tokens",
        (purpose, calls, tokens),
    )


def _started(process: int) -> float | None:
    """When a process of this machine began, so that its number is not mistaken for a later one's; None: it is gone."""
    try:
        running = psutil.Process(process)
        return None if running.status() == psutil.STATUS_ZOMBIE else running.create_time()
    except psutil.Error:
        return None


def _tables(database: sqlite3.Connection) -> int:
    return database.execute("select count(*) from sqlite_master").fetchone()[0]


def _until_unlocked(act: Callable[[], Any]) -> Any:
    """Act again while the database is locked: sqlite does not wait by itself where its journal's mode is changed."""
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return act()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
        time.sleep(0.01)
