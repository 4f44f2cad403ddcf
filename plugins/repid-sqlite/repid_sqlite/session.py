"""A session at work: the open file, the lease, and the links to the other sessions. All of it belongs to one thread."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from repid_core.clock import Clock
from repid_sqlite import sessions
from repid_sqlite.errors import UnusableFileError
from repid_sqlite.links import Links
from repid_sqlite.schema import open_file
from repid_sqlite.settings import FileSettings
from repid_sqlite.transaction import Transaction, key_of

R = TypeVar("R")

_logger = logging.getLogger(__name__)
_LONGEST_INTERVAL = 5.0  # seconds between two looks at the others' leases
_RETRY = 0.2  # seconds after which a file that could not be used is tried again
_SPARE_PAGES = 256  # free pages that the file keeps for what comes, and the most that are given back at once


class Session:
    """Opens the file, and joins those that use it.

    Args:
        settings: Where the file is, and how it is used.
        clock: The time of due times and expiries.
        most: How many workers a message may kill.

    Attributes:
        number: Its number.
        links: Its sockets.
        healthy: Whether the file could be used when that was tried last.
        next_beat: When the lease is to be renewed, on the monotonic clock.
        stirred: Whether messages of the dead came back, since this was set to False.

    Raises:
        UnusableFileError: The file is none of ours.
        sqlite3.Error: It cannot be used now.
    """

    def __init__(self, settings: FileSettings, clock: Clock, most: int) -> None:
        self._settings, self._clock, self._most = settings, clock, most
        self._lease = int(settings.lease.total_seconds() * 1000)
        self._interval = _LONGEST_INTERVAL
        self._suspects = set[int]()
        self.number, self.next_beat = 0, 0.0
        self.healthy, self.stirred = True, False
        self.db = open_file(settings)
        try:
            info = settings.path.stat()
            self._file = info.st_dev, info.st_ino
            self.links = Links(settings.path)
        except BaseException:
            self.db.close()
            raise
        try:
            self.transact(self._join)
        except BaseException:
            self.close()
            raise

    def close(self, *, abandon: bool = False) -> None:
        """Close all. What was not left before is found dead."""
        self.links.close(remove=not abandon)
        self.db.close()

    def leave(self) -> None:
        """End the session as it should."""
        with suppress(sqlite3.Error, UnusableFileError):  # others find us dead
            self.transact(lambda tx: sessions.leave(tx, self.number))

    def now(self) -> int:
        """Microseconds since the epoch."""
        return self._clock.time_ns() // 1000

    def reading(self) -> Transaction:
        """What can be used to look at something, outside a transaction."""
        return Transaction(self.db, self.now(), self.number)

    def transact(self, work: Callable[[Transaction], R], *, writes: bool = True) -> R:
        """Do `work` in a transaction, and wake who waits for what it has changed."""
        self.db.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
        try:
            tx = self.reading()
            result = work(tx)
            listeners = [(other, key_of(name)) for channel, name in tx.touched for other in sessions.listening_on(tx, channel)]
            self.db.execute("COMMIT")
        except BaseException:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            raise
        self.healthy = self.healthy or writes
        for other, key in listeners:
            self.links.send(other, key)
        return result

    def wait(self, seconds: float) -> set[bytes]:
        """Wait to be woken, for at most so long; for what."""
        keys = self.links.wait(seconds)
        self._suspects |= self.links.lost
        self.links.lost.clear()
        return keys

    def keep(self) -> bool:
        """Renew the lease and see to dead sessions, if it is time; whether it was.

        Raises:
            UnusableFileError: The file is not there any more.
            LostSessionError: The session is over.
        """
        self._check_file()
        if not self._suspects and time.monotonic() < self.next_beat:
            return False
        self.transact(self._beat)
        self._suspects.clear()
        return True

    def rejoin(self) -> None:
        """Begin anew, after others have taken us for dead."""
        text = "this process was silent for longer than the lease of %s: what it held comes again"
        _logger.warning(text, self._settings.path)
        self.links.listen(self._settings.path)
        self.transact(self._join)

    def failed(self) -> bool:
        """The file could not be used: try again soon. Whether this is news."""
        was, self.healthy = self.healthy, False
        self.next_beat = time.monotonic() + _RETRY
        return was

    def _join(self, tx: Transaction) -> None:
        self.number = tx.session = sessions.join(tx, self.links.address, self._lease, self._most)
        self._plan_beat(tx)
        for other, address in sessions.others(tx):
            if not self.links.greet(other, address, self.number):
                self._bury(tx, other)

    def _plan_beat(self, tx: Transaction) -> None:
        """Renew, and look at the others, three times in the shortest lease that anybody has."""
        self._interval = min(sessions.shortest_lease(tx) / 3000, _LONGEST_INTERVAL)
        self.next_beat = time.monotonic() + self._interval

    def _beat(self, tx: Transaction) -> None:
        on_time = self.healthy and time.monotonic() - self.next_beat < self._interval
        sessions.renew(tx, self.number, self._lease)
        self._plan_beat(tx)
        for other, address in sessions.others(tx):
            if other in self._suspects and not self.links.greet(other, address, self.number):
                self._bury(tx, other)
        if on_time:  # if we had to wait for the lock, or slept, so did the others
            for other in sessions.overdue(tx):
                self._bury(tx, other)
        [spare] = self.db.execute("PRAGMA freelist_count").fetchone()
        for _ in range(min(spare - _SPARE_PAGES, _SPARE_PAGES)):  # sqlite3 does one step of a statement without columns
            self.db.execute("PRAGMA incremental_vacuum(1)")

    def _bury(self, tx: Transaction, other: int) -> None:
        address, held = sessions.bury(tx, other)
        self.stirred = True
        if held:
            text = "a process that used %s has died or fallen silent: %d messages that it held come again"
            _logger.warning(text, self._settings.path, held)
        if address is not None:
            self.links.remove(address)

    def _check_file(self) -> None:
        """Notice that the file was moved away: what goes into it now, nobody would ever see."""
        try:
            info = os.stat(self._settings.path)  # noqa: PTH116 — every turn does it
        except OSError as error:
            raise UnusableFileError("it was removed while it was in use: restart the processes that use it") from error
        if (info.st_dev, info.st_ino) != self._file:
            raise UnusableFileError("another file has taken its place while it was in use: restart the processes that use it")
