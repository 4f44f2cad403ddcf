"""What the thread of a broker does in one transaction, and how it is asked to."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Generic, TypeVar

from attrs import define, field, frozen

from repid_core.errors import RepidError

Q = TypeVar("Q")
R = TypeVar("R")


@lru_cache(4096)
def key_of(name: str) -> bytes:
    """What wakes those who wait for `name`, on the sockets."""
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


@define
class Transaction:
    """One transaction at work.

    Attributes:
        db: The connection to the file.
        now: Microseconds since the epoch.
        session: Which one of the file's sessions this is.
        touched: What has changed: the channel that its listeners have, and the name that they are woken for.
    """

    db: sqlite3.Connection
    now: int
    session: int
    touched: set[tuple[str, str]] = field(factory=set)

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        """Run a statement."""
        return self.db.execute(sql, values)

    def touch(self, channel: str, name: str | None = None) -> None:
        """Wake, once this is committed, who listens on `channel`."""
        self.touched.add((channel, channel if name is None else name))


@frozen
class Action(Generic[Q, R]):
    """What may be asked of the thread.

    It may be run a second time if the transaction failed, so it leaves nothing behind but in the file.

    Attributes:
        run: Does it for several requests at once; gives a result, or the error, for each.
        writes: Whether it needs the write lock.
    """

    run: Callable[[Transaction, Sequence[Q]], Sequence[R | Exception]]
    writes: bool = True


def action(work: Callable[[Transaction, Q], R], *, writes: bool = True) -> Action[Q, R]:
    """An action that is done request by request; a `RepidError` fails its own request alone, so it comes before any change."""

    def run(tx: Transaction, requests: Sequence[Q]) -> list[R | Exception]:
        results: list[R | Exception] = []
        for request in requests:
            try:
                results.append(work(tx, request))
            except RepidError as error:
                results.append(error)
        return results

    return Action(run, writes)
