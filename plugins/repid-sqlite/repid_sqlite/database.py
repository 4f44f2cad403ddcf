"""The thread that works on the file, for one broker.

What the broker asks for in one turn of the event loop becomes one transaction, together with what its consumers wait for. After
that those are woken who wait for what has changed. Between, the thread sleeps until somebody asks or wakes it, a delayed message
is due, the lease is to be renewed, or, once in `poll`, to look whether a wake-up was missed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, Protocol, TypeVar

from attrs import define

from repid_core.clock import Clock
from repid_core.errors import RepidError
from repid_sqlite import sessions
from repid_sqlite.errors import LostSessionError, UnusableFileError, explain, passing
from repid_sqlite.links import Links
from repid_sqlite.schema import open_file
from repid_sqlite.settings import _Common
from repid_sqlite.transaction import Action, Transaction, key_of

Q = TypeVar("Q")
R = TypeVar("R")

_logger = logging.getLogger(__name__)
_LONGEST_INTERVAL = 5.0  # seconds between two looks at the others' leases
_SPARE_PAGES = 256  # free pages that the file keeps for what comes


class Standing(Protocol):
    """What a broker waits for, beside its calls. It is called in the thread, unless said otherwise."""

    def waits(self) -> bool:
        """Whether there is anything."""

    def look(self, tx: Transaction, keys: set[bytes] | None) -> bool:
        """Whether some of it may be there, as `keys` were touched (None: whatever); if not, the transaction only reads."""

    def take(self, tx: Transaction) -> list[Any]:
        """Take what `look` has found."""

    def taken(self, arrivals: list[Any]) -> None:
        """It is committed: do not wait for that any more."""

    def arrive(self, arrivals: list[Any]) -> None:
        """On the loop: hand it out."""

    def due(self, tx: Transaction) -> int | None:
        """When there will be more, in microseconds since the epoch."""

    def lost(self) -> None:
        """On the loop: the session was lost, and there is a new one."""


@define(eq=False)
class _Call:
    """A call of the broker."""

    action: Action[Any, Any]
    request: Any
    future: asyncio.Future[Any]
    insist: bool = False
    outcome: Any = None


class Database:
    """One session of the file, and its thread.

    Args:
        settings: Where the file is, and how it is used.
        clock: The time of due times and expiries.
        away: The error that says that the file cannot be used now.
        refused: The error that says that SQLite refuses what was asked.
        standing: What the broker waits for.
        most: How many workers a message may kill.

    Attributes:
        session: The number of the session.
        healthy: Whether the last attempt to work on the file was successful.
    """

    def __init__(
        self,
        settings: _Common,
        clock: Clock,
        away: type[RepidError],
        refused: type[RepidError],
        standing: Standing,
        most: int = 0,
    ) -> None:
        self.settings, self.clock, self.standing = settings, clock, standing
        self.session = 0
        self.healthy = True
        self._away, self._refused, self._most = away, refused, most
        self._loop = asyncio.get_running_loop()
        self._lease = int(settings.lease.total_seconds() * 1000)
        self._poll = settings.poll.total_seconds()
        self._inbox: deque[_Call] = deque()
        self._outbox: list[_Call] = []  # of this turn of the loop
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._ending = False
        self._abandoned = False
        self._links: Links | None = None
        self._suspects = set[int]()
        self._owed: list[_Call] = []  # settlements that could not be done yet
        self._poked = set[bytes]()
        self._asked = False  # to look for everything that is waited for; set by either side, before which the reason is there
        self._next_beat = self._next_poll = 0.0
        self._interval = _LONGEST_INTERVAL
        self._next_due: int | None = None
        self._version = 0
        self._thread = threading.Thread(target=self._main, name="repid-sqlite", daemon=True)

    # On the loop

    async def open(self) -> None:
        """Start the thread, which opens the file.

        Raises:
            RepidError: `away`, as the file cannot be used.
        """
        self._thread.start()
        await asyncio.shield(self._opened)

    async def close(self) -> None:
        """End the session, once all that was asked is done, and the thread."""
        self._hand_over()
        self._ending = True
        if self._thread.ident is not None:
            self._wake()
            await asyncio.shield(self._closed)
        if self._opened.done() and not self._opened.cancelled():
            self._opened.exception()  # whoever opened has heard of it, or does not want to

    def abandon(self) -> None:
        """End as by `kill -9`: nothing is given back, nobody is told."""
        self._abandoned = self._ending = True
        self._wake()
        self._thread.join()

    def call(self, action: Action[Q, R], request: Q, *, insist: bool = False) -> asyncio.Future[R]:
        """Ask for something; a future that is cancelled does not take it back.

        Args:
            action: What is to be done.
            request: With what.
            insist: If the file cannot be used now, to do it later all the same, after the future has its error.
        """
        future: asyncio.Future[R] = self._loop.create_future()
        if self._ending:
            future.set_exception(self._away(f"{self.settings.path} is not open any more: connect again"))
            return future
        if not self._outbox:
            self._loop.call_soon(self._hand_over)
        self._outbox.append(_Call(action, request, future, insist))
        return future

    def look_again(self) -> None:
        """The broker waits for something new: see if it is there."""
        self._asked = True
        self._wake()

    def _hand_over(self) -> None:
        if self._outbox:
            self._inbox.extend(self._outbox)
            self._outbox.clear()
            self._wake()

    def _wake(self) -> None:
        if self._links is not None:
            self._links.wake()

    def _finish(self, calls: Sequence[_Call]) -> None:
        for call in calls:
            if call.future.done():
                continue
            if isinstance(call.outcome, Exception):
                call.future.set_exception(call.outcome)
            else:
                call.future.set_result(call.outcome)

    # In the thread

    def _post(self, callback: Callable[..., Any], *args: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(callback, *args)

    def _main(self) -> None:
        try:
            self._start()
        except Exception as error:  # noqa: BLE001 — whoever opens gets it
            self._shut()
            self._post(_fail, self._opened, self._translated(error))
        else:
            self._post(_succeed, self._opened)
            try:
                while not (self._ending and (self._abandoned or not self._inbox)):
                    self._turn()
                if not self._abandoned:
                    self._leave()
            finally:
                self._shut()
        self._post(_succeed, self._closed)

    def _start(self) -> None:
        self._db = open_file(self.settings)
        info = self.settings.path.stat()
        self._file = info.st_dev, info.st_ino
        self._links = Links(self.settings.path)
        self._transact(self._join)

    def _shut(self) -> None:
        if self._links is not None:
            self._links.close(remove=not self._abandoned)
        if hasattr(self, "_db"):
            self._db.close()
        for call in self._inbox:
            call.outcome = self._away(f"{self.settings.path} was closed before this was done")
        self._post(self._finish, list(self._inbox))

    def _leave(self) -> None:
        with suppress(sqlite3.Error, UnusableFileError):  # others find us dead
            self._transact(lambda tx: sessions.leave(tx, self.session))

    def _join(self, tx: Transaction) -> None:
        assert self._links is not None  # noqa: S101 — made before
        self.session = tx.session = sessions.join(tx, self._links.address, self._lease, self._most)
        self._plan_beat(tx)
        for session, address in sessions.others(tx):
            if not self._links.greet(session, address, self.session):
                self._bury(tx, session)

    def _turn(self) -> None:
        """Wait for something to do, and do it."""
        assert self._links is not None  # noqa: S101 — made before
        self._poked |= self._links.wait(0.0 if self._inbox or self._asked or self._ending else self._pause())
        self._suspects |= self._links.lost
        self._links.lost.clear()
        calls = [self._inbox.popleft() for _ in range(len(self._inbox))]
        try:
            self._check_file()
            if self._suspects or time.monotonic() >= self._next_beat:
                self._transact(self._beat)
                calls[:0], self._owed = self._owed, []
            self._watch()
            self._work(calls)
        except LostSessionError:
            self._rejoin(calls)
        except (sqlite3.Error, UnusableFileError) as error:
            self._failed(calls, error)

    def _pause(self) -> float:
        """How long there is nothing to do, unless somebody wakes us."""
        now = time.monotonic()
        until = self._next_beat - now
        if self.standing.waits():
            until = min(until, self._next_poll - now)
            if self._next_due is not None:
                until = min(until, (self._next_due - self._now()) / 1e6)
        return until

    def _watch(self) -> None:
        """Look, once in a while, whether a wake-up was missed; and whether the next message is due."""
        if not self.standing.waits():
            return
        if self._next_due is not None and self._now() >= self._next_due:
            self._asked = True
        if time.monotonic() >= self._next_poll:
            self._next_poll = time.monotonic() + self._poll
            [version] = self._db.execute("PRAGMA data_version").fetchone()
            if version != self._version:
                self._version, self._asked = version, True

    def _work(self, calls: list[_Call]) -> None:
        """Do what was asked, and see to what is waited for, in one transaction."""
        keys = self._keys()
        try:
            arrivals = self._transact(lambda tx: self._do(tx, calls, keys), self._needs(calls, keys))
        except sqlite3.Error as error:
            self._asked = True
            if passing(error) and len(calls) < 2:
                raise
            self._one_by_one(calls)
            return
        if arrivals:
            self.standing.taken(arrivals)
        if calls or arrivals:
            self._post(self._deliver, calls, arrivals)

    def _keys(self) -> set[bytes] | None:
        """What was touched since this was called last; None if all is to be looked for."""
        keys, self._poked = self._poked, set()
        if self._asked:
            self._asked = False
            return None
        return keys

    def _needs(self, calls: list[_Call], keys: set[bytes] | None) -> bool | None:
        """Whether a transaction needs the write lock; None if there is nothing to do."""
        if any(call.action.writes for call in calls):
            return True
        if keys != set() and self.standing.waits():
            reading = Transaction(self._db, self._now(), self.session)
            if self.standing.look(reading, keys):
                return True
            self._next_due = self.standing.due(reading)
        return False if calls else None

    def _do(self, tx: Transaction, calls: list[_Call], keys: set[bytes] | None) -> list[Any]:
        """The calls, and then what is waited for; what of that has come."""
        _run(tx, calls)
        arrivals: list[Any] = []
        if self.standing.waits():
            keys = None if keys is None else keys | {key_of(name) for _, name in tx.touched}
            if keys != set() and self.standing.look(tx, keys):
                arrivals = self.standing.take(tx)
            self._next_due = self.standing.due(tx)
        return arrivals

    def _deliver(self, calls: list[_Call], arrivals: list[Any] | None) -> None:
        if arrivals:
            self.standing.arrive(arrivals)
        self._finish(calls)

    def _one_by_one(self, calls: list[_Call]) -> None:
        """Find out which call has failed, and do the others."""
        for number, call in enumerate(calls):
            try:
                self._transact(lambda tx, call=call: _run(tx, [call]), call.action.writes)  # type: ignore[misc]
            except LostSessionError:
                self._post(self._finish, calls[:number])
                self._rejoin(calls[number:])
                return
            except sqlite3.Error as error:
                self._fail(call, error)
        self._post(self._finish, calls)

    def _transact(self, work: Callable[[Transaction], R], writes: bool | None = True) -> R | None:
        """Do `work` in a transaction, and wake who waits for what it has changed."""
        if writes is None:
            return None
        self._db.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
        try:
            tx = Transaction(self._db, self._now(), self.session)
            result = work(tx)
            listeners = [
                (session, key_of(name)) for channel, name in tx.touched for session in sessions.listening_on(tx, channel)
            ]
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self.healthy = self.healthy or writes
        if self._links is not None:
            for session, key in listeners:
                self._links.send(session, key)
        return result

    # Leases

    def _plan_beat(self, tx: Transaction) -> None:
        """Renew, and look at the others, three times in the shortest lease that anybody has."""
        self._interval = min(sessions.shortest_lease(tx) / 3000, _LONGEST_INTERVAL)
        self._next_beat = time.monotonic() + self._interval

    def _beat(self, tx: Transaction) -> None:
        """Renew the lease, and see to sessions that are dead."""
        assert self._links is not None  # noqa: S101 — made before
        waited, interval = time.monotonic() - self._next_beat, self._interval
        sessions.renew(tx, self.session, self._lease)
        self._plan_beat(tx)
        for session, address in sessions.others(tx):
            if session in self._suspects and not self._links.greet(session, address, self.session):
                self._bury(tx, session)
        if waited < interval:  # if we had to wait for the lock, so had the others
            for session in sessions.overdue(tx):
                self._bury(tx, session)
        self._suspects.clear()
        [spare] = self._db.execute("PRAGMA freelist_count").fetchone()
        if spare > _SPARE_PAGES:
            for _ in range(min(spare - _SPARE_PAGES, _SPARE_PAGES)):  # sqlite3 does one step of a statement without columns
                self._db.execute("PRAGMA incremental_vacuum(1)")

    def _bury(self, tx: Transaction, session: int) -> None:
        address, held = sessions.bury(tx, session)
        self._asked = True
        if held:
            text = "a process that used %s has died or fallen silent: %d messages that it held come again"
            _logger.warning(text, self.settings.path, held)
        if address is not None and self._links is not None:
            self._links.remove(address)

    def _rejoin(self, calls: list[_Call]) -> None:
        """Others have taken us for dead: what we held is lost. Begin anew."""
        _logger.warning("this process was silent for longer than the lease of %s: what it held comes again", self.settings.path)
        assert self._links is not None  # noqa: S101 — made before
        self._links.listen(self.settings.path)
        try:
            self._transact(self._join)
        except (sqlite3.Error, UnusableFileError) as error:
            self._failed(calls, error)
            return
        self._inbox.extendleft(reversed(calls))
        self._post(self.standing.lost)

    # Errors

    def _failed(self, calls: list[_Call], error: Exception) -> None:
        """The file cannot be used now."""
        if self.healthy:
            _logger.warning("%s", explain(self.settings.path, error))
        self.healthy = False
        self._next_beat = time.monotonic() + 0.2  # which tries again
        self._next_poll, self._version = time.monotonic() + min(0.5, self._poll), -1
        self._asked = False  # but then
        for call in calls:
            self._fail(call, error)
        self._post(self._finish, calls)

    def _fail(self, call: _Call, error: Exception) -> None:
        call.outcome = self._translated(error)
        if call.insist and passing(error):
            self._owed.append(_Call(call.action, call.request, call.future))

    def _translated(self, error: Exception) -> Exception:
        if isinstance(error, RepidError):
            return error
        kind = self._away if passing(error) or isinstance(error, OSError) else self._refused
        translated = kind(explain(self.settings.path, error))
        translated.__cause__ = error
        return translated

    def _check_file(self) -> None:
        """Notice that the file was moved away: what goes into it now, nobody would ever see."""
        try:
            info = os.stat(self.settings.path)  # noqa: PTH116 — every turn does it
        except OSError as error:
            raise UnusableFileError("it was removed while it was in use: restart the processes that use it") from error
        if (info.st_dev, info.st_ino) != self._file:
            raise UnusableFileError("another file has taken its place while it was in use: restart the processes that use it")

    def _now(self) -> int:
        return self.clock.time_ns() // 1000


def _run(tx: Transaction, calls: list[_Call]) -> None:
    """Do what was asked; calls for the same thing that follow each other together."""
    for action, group in groupby(calls, lambda call: call.action):
        alike = list(group)
        outcomes = action.run(tx, [call.request for call in alike])
        for call, outcome in zip(alike, outcomes, strict=True):
            call.outcome = outcome


def _succeed(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
