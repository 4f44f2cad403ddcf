"""Who works with the file: a session for each broker that is connected, which lives while its process does and renews it.

Leases go by the machine's monotonic clock, which all processes share and nobody sets. It starts anew with the machine, so an
end that lies too far ahead is one from before.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from repid_core.codec import death_fields
from repid_core.data import Death, DeathReason
from repid_sqlite.errors import LostSessionError
from repid_sqlite.schema import DEAD, READY
from repid_sqlite.transaction import Transaction, action

CONSUMERS: Final = 32  # bits of a holder that count the consumers of a session


def uptime() -> int:
    """Milliseconds, on the clock of the leases."""
    return time.monotonic_ns() // 1_000_000


def join(tx: Transaction, address: str | None, lease: int, most: int) -> int:
    """Begin a session; its number.

    Args:
        tx: The transaction.
        address: Where it listens; None if it does not.
        lease: How long it may be silent, in milliseconds.
        most: How many workers a message that it holds may kill.
    """
    insert = "INSERT INTO sessions (pid, address, lease, expires, most) VALUES (?, ?, ?, ?, ?)"
    return tx.execute(insert, os.getpid(), address, lease, uptime() + lease, most).lastrowid or 0


def renew(tx: Transaction, session: int, lease: int) -> None:
    """Go on living.

    Raises:
        LostSessionError: The session is over.
    """
    if not tx.execute("UPDATE sessions SET expires = ? WHERE session = ?", uptime() + lease, session).rowcount:
        raise LostSessionError


def alive(tx: Transaction) -> None:
    """Make sure of the session before it takes something.

    Raises:
        LostSessionError: The session is over.
    """
    if tx.execute("SELECT 1 FROM sessions WHERE session = ?", tx.session).fetchone() is None:
        raise LostSessionError


def others(tx: Transaction) -> list[tuple[int, str]]:
    """The other sessions that have an address, and that address."""
    return tx.execute("SELECT session, address FROM sessions WHERE session <> ? AND address IS NOT NULL", tx.session).fetchall()


def shortest_lease(tx: Transaction) -> int:
    """In milliseconds, of all sessions."""
    [lease] = tx.execute("SELECT min(lease) FROM sessions").fetchone()
    return lease or 0


def overdue(tx: Transaction) -> list[int]:
    """Sessions whose lease is over."""
    now = uptime()
    return [row[0] for row in tx.execute("SELECT session FROM sessions WHERE expires < ? OR expires > ? + 2 * lease", now, now)]


def bury(tx: Transaction, session: int) -> tuple[str | None, int]:
    """End a session whose process is dead: give back what it held, and blame what it was running.

    Returns:
        Its address, if it had one, and how many messages it held.
    """
    row = tx.execute("DELETE FROM sessions WHERE session = ? RETURNING address, most", session).fetchone()
    if row is None:
        return None, 0  # another has done it
    address: str | None
    address, most = row
    given_back = tx.execute(
        "UPDATE messages SET holder = NULL, marked = 0, deaths = deaths + (state = 0 AND (marked OR NOT redelivered)),"
        " redelivered = redelivered OR state = 0 WHERE holder >= ? AND holder < ? RETURNING number, queue, state, deaths",
        session << CONSUMERS,
        (session + 1) << CONSUMERS,
    ).fetchall()
    for number, queue, state, deaths in given_back:
        if state == READY and deaths >= most:
            at = datetime.fromtimestamp(tx.now / 1e6, UTC)
            death = Death(DeathReason.POISON, at, deaths, f"{deaths} workers died while they ran it")
            to_dead(tx, number, queue, json.dumps(death_fields(death)))
    _touch_queues(tx, {queue for _, queue, _, _ in given_back})
    tx.execute("DELETE FROM listeners WHERE session = ?", session)
    return address, len(given_back)


def to_dead(tx: Transaction, number: int, queue: int, death: str) -> None:
    """Move a message to DEAD, last in line."""
    [tail] = tx.execute("UPDATE queues SET tail = tail + 1 WHERE queue = ? RETURNING tail", queue).fetchone()
    update = "UPDATE messages SET state = ?, place = ?, death = ?, holder = NULL, marked = 0 WHERE number = ?"
    tx.execute(update, DEAD, tail, death, number)


def leave(tx: Transaction, session: int) -> None:
    """End one's own session, giving back what is held; nothing is counted."""
    freed = "UPDATE messages SET holder = NULL, marked = 0 WHERE holder >= ? AND holder < ? RETURNING queue"
    queues = {row[0] for row in tx.execute(freed, session << CONSUMERS, (session + 1) << CONSUMERS)}
    _touch_queues(tx, queues)
    tx.execute("DELETE FROM listeners WHERE session = ?", session)
    tx.execute("DELETE FROM sessions WHERE session = ?", session)


def _touch_queues(tx: Transaction, queues: Iterable[int]) -> None:
    for queue in queues:
        for [name] in tx.execute("SELECT name FROM queues WHERE queue = ?", queue):
            tx.touch(name)


def listening_on(tx: Transaction, channel: str) -> list[int]:
    """The other sessions that listen there."""
    select = "SELECT session FROM listeners WHERE channel = ? AND session <> ?"
    return [row[0] for row in tx.execute(select, channel, tx.session)]


def _listen(tx: Transaction, channel: str) -> None:
    alive(tx)
    tx.execute("INSERT OR IGNORE INTO listeners VALUES (?, ?)", channel, tx.session)


def _unlisten(tx: Transaction, channel: str) -> None:
    tx.execute("DELETE FROM listeners WHERE channel = ? AND session = ?", channel, tx.session)


LISTEN = action(_listen)
UNLISTEN = action(_unlisten)
