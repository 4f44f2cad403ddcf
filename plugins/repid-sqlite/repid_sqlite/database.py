"""The thread that works on the file, for one broker.

What the broker asks for in one turn of the event loop becomes one transaction, together with what its consumers wait for. After
that those are woken who wait for what has changed. Between, the thread sleeps until somebody asks or wakes it, a delayed message
is due, the lease is to be renewed, or, once in `poll`, to look whether a wake-up was missed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, TypeVar

from attrs import define

from repid_core.clock import Clock
from repid_core.errors import RepidError
from repid_sqlite.errors import LostSessionError, explain, passing
from repid_sqlite.session import Session
from repid_sqlite.settings import FileSettings
from repid_sqlite.standing import Standing
from repid_sqlite.transaction import Action, Transaction, key_of

Q = TypeVar("Q")
R = TypeVar("R")

_logger = logging.getLogger(__name__)


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

    """

    def __init__(
        self,
        settings: FileSettings,
        clock: Clock,
        away: type[RepidError],
        refused: type[RepidError],
        standing: Standing,
        most: int = 0,
    ) -> None:
        self.settings, self.clock, self.standing = settings, clock, standing
        self._away, self._refused, self._most = away, refused, most
        self._loop, self._pid = asyncio.get_running_loop(), os.getpid()
        self._poll = settings.poll.total_seconds()
        self._inbox: deque[_Call] = deque()
        self._outbox: list[_Call] = []  # of this turn of the loop
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._ending = False
        self._abandoned = False
        self._session: Session | None = None
        self._owed: list[_Call] = []  # settlements that could not be done yet
        self._poked = set[bytes]()
        self._asked = False  # to look for everything that is waited for; set by either side, before which the reason is there
        self._next_poll = 0.0
        self._next_due: int | None = None
        self._version = 0
        self._thread = threading.Thread(target=self._main, name="repid-sqlite", daemon=True)

    @property
    def session(self) -> int:
        """The number of the session."""
        return 0 if self._session is None else self._session.number

    @property
    def healthy(self) -> bool:
        """Whether the file could be used when that was tried last."""
        return self._session is None or self._session.healthy

    @property
    def woken(self) -> bool:
        """Whether others can wake this session; else it polls."""
        return self._session is not None and self._session.links.address is not None

    # On the loop

    def is_here(self) -> bool:
        """Whether it is of the loop that runs; if not, it is to be forsaken, and another made.

        Raises:
            RepidError: `away`, as this process is a fork of the one that has opened the file.
        """
        if self._pid != os.getpid():
            raise self._away(
                f"{self.settings.path} was in use when this process was forked, which SQLite does not allow: "
                "disconnect before the fork, or fork before the first use"
            )
        return self._loop is asyncio.get_running_loop()

    def forsake(self) -> None:
        """End once what was asked is done; nobody waits for it, as the loop is gone."""
        self._ending = True
        self._wake()

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
        if self._session is not None:
            self._session.links.wake()

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
            self._session = Session(self.settings, self.clock, self._most)
        except Exception as error:  # noqa: BLE001 — whoever opens gets it
            self._post(_fail, self._opened, self._translated(error))
        else:
            self._post(_succeed, self._opened)
            self._live(self._session)
        for call in self._inbox:
            call.outcome = self._away(f"{self.settings.path} was closed before this was done")
        self._post(self._finish, list(self._inbox))
        self._post(_succeed, self._closed)

    def _live(self, session: Session) -> None:
        try:
            while not (self._ending and (self._abandoned or not self._inbox)):
                self._turn(session)
            if not self._abandoned:
                session.leave()
        finally:
            session.close(abandon=self._abandoned)

    def _turn(self, session: Session) -> None:
        """Wait for something to do, and do it."""
        self._poked |= session.wait(0.0 if self._inbox or self._asked or self._ending else self._pause(session))
        calls = [self._inbox.popleft() for _ in range(len(self._inbox))]
        try:
            if session.keep():
                calls[:0], self._owed = self._owed, []
            self._watch(session)
            self._work(session, calls)
        except LostSessionError:
            self._rejoin(session, calls)
        except Exception as error:  # noqa: BLE001 — whoever has called gets it
            self._failed(session, calls, error)

    def _pause(self, session: Session) -> float:
        """How long there is nothing to do, unless somebody wakes us."""
        now = time.monotonic()
        until = session.next_beat - now
        if self.standing.waits():
            until = min(until, self._next_poll - now)
            if self._next_due is not None:
                until = min(until, (self._next_due - session.now()) / 1e6)
        return until

    def _watch(self, session: Session) -> None:
        """Look, once in a while, whether a wake-up was missed; and whether the next message is due."""
        if session.stirred:
            session.stirred, self._asked = False, True
        if not self.standing.waits():
            return
        if self._next_due is not None and session.now() >= self._next_due:
            self._asked = True
        if time.monotonic() >= self._next_poll:
            self._next_poll = time.monotonic() + self._poll
            [version] = session.db.execute("PRAGMA data_version").fetchone()
            if version != self._version:
                self._version, self._asked = version, True

    def _work(self, session: Session, calls: list[_Call]) -> None:
        """Do what was asked, and see to what is waited for, in one transaction."""
        keys = self._keys()
        try:
            writes = self._needs(session, calls, keys)
            if writes is None:
                return
            arrivals = session.transact(lambda tx: self._do(tx, calls, keys), writes=writes)
        except LostSessionError:
            raise
        except Exception as error:
            self._asked = True
            if passing(error) and len(calls) < 2:
                raise
            self._one_by_one(session, calls)
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

    def _needs(self, session: Session, calls: list[_Call], keys: set[bytes] | None) -> bool | None:
        """Whether a transaction needs the write lock; None if there is nothing to do."""
        if any(call.action.writes for call in calls):
            return True
        if keys != set() and self.standing.waits():
            reading = session.reading()
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

    def _deliver(self, calls: list[_Call], arrivals: list[Any]) -> None:
        if arrivals:
            self.standing.arrive(arrivals)
        self._finish(calls)

    def _one_by_one(self, session: Session, calls: list[_Call]) -> None:
        """Find out which call has failed, and do the others."""
        for number, call in enumerate(calls):
            try:
                session.transact(lambda tx, call=call: _run(tx, [call]), writes=call.action.writes)  # type: ignore[misc]
            except LostSessionError:
                self._post(self._finish, calls[:number])
                self._rejoin(session, calls[number:])
                return
            except Exception as error:  # noqa: BLE001 — whoever has called gets it
                self._fail(call, error)
        self._post(self._finish, calls)

    def _rejoin(self, session: Session, calls: list[_Call]) -> None:
        """Others have taken us for dead, and what we held is lost: go on in a new session."""
        try:
            session.rejoin()
        except Exception as error:  # noqa: BLE001 — whoever has called gets it
            self._failed(session, calls, error)
            return
        self._inbox.extendleft(reversed(calls))
        self._post(self.standing.lost)

    def _failed(self, session: Session, calls: list[_Call], error: Exception) -> None:
        """The file cannot be used now."""
        if session.failed():
            _logger.warning("%s", explain(self.settings.path, error))
        self._next_poll, self._version = session.next_beat, -1
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
