"""What is done with whole queues."""

from __future__ import annotations

from heapq import merge
from itertools import islice
from typing import Final

from attrs import frozen

from repid_core.data import MessageCategory, QueueStats
from repid_sqlite.fetching import STATES, aside, lanes_of, promote
from repid_sqlite.messages import lane_of, tail_of
from repid_sqlite.transaction import Transaction, action

_STEP: Final = 1000  # messages that one transaction removes, so that others get their turn
_FLUSH: Final = {
    state: f"DELETE FROM messages WHERE number IN ({select})"  # noqa: S608 — made of constants
    for state, select in aside("SELECT number", "LIMIT ?").items()
}
_PAGE: Final = aside("SELECT 0, place, number, frame, death", "AND (place, number) > (?, ?) ORDER BY place, number LIMIT ?")


@frozen
class Page:
    """A part of a list: behind `after`, which is the order's three numbers."""

    queue: str
    category: MessageCategory
    after: tuple[int, int, int]
    limit: int


def _declare(tx: Transaction, request: tuple[str, tuple[str, ...]]) -> None:
    name, topics = request
    queue, _ = tail_of(tx, name)
    for topic in topics:
        lane_of(tx, queue, topic)


def _flush(tx: Transaction, name: str) -> int:
    """Remove some; how many."""
    removed = 0
    for statement in _FLUSH.values():
        removed += tx.execute(statement, name, _STEP).rowcount
    for lane in lanes_of(tx, name, None):
        removed += tx.execute(
            "DELETE FROM messages WHERE number IN (SELECT number FROM messages WHERE lane = ? AND state = 0"
            " AND holder IS NULL LIMIT ?)",
            lane, _STEP,
        ).rowcount  # fmt: skip
    return removed


def _delete(tx: Transaction, name: str) -> None:
    """Remove a queue and the little that a flush has left in it."""
    row = tx.execute("DELETE FROM queues WHERE name = ? RETURNING queue", name).fetchone()
    if row is not None:
        for rest in ("state < 2", "state = 2 AND holder IS NULL", "holder IS NOT NULL"):
            tx.execute(f"DELETE FROM messages WHERE queue = ? AND {rest}", row[0])  # noqa: S608 — the constants above
        tx.execute("DELETE FROM lanes WHERE queue = ?", row[0])


def _names(tx: Transaction, space: str) -> list[str]:
    """The queues of a prefix, in the order of the alphabet."""
    start = f"{space}:"
    found = tx.execute("SELECT name FROM queues WHERE substr(name, 1, ?) = ?", len(start), start).fetchall()
    return sorted(name.removeprefix(start) for (name,) in found)


def _stats(tx: Transaction, name: str) -> QueueStats:
    row = tx.execute("SELECT queue FROM queues WHERE name = ?", name).fetchone()
    if row is None:
        return QueueStats(0, 0, 0, 0)

    def count(where: str, *values: int) -> int:
        return tx.execute(f"SELECT count(*) FROM messages WHERE {where}", *values).fetchone()[0]  # type: ignore[no-any-return]  # noqa: S608 — a constant

    ready = sum(count("lane = ? AND state = 0 AND holder IS NULL", lane) for lane in lanes_of(tx, name, None))
    due = count("queue = ? AND state = 1 AND holder IS NULL AND place <= ?", row[0], tx.now)
    delayed = count("queue = ? AND state = 1 AND holder IS NULL AND place > ?", row[0], tx.now)
    dead = count("queue = ? AND state = 2 AND holder IS NULL", row[0])
    return QueueStats(ready + due, count("holder IS NOT NULL AND queue = ?", row[0]), delayed, dead)


def _cancel(tx: Transaction, request: tuple[str, str]) -> bool:
    name, id_ = request
    return bool(
        tx.execute(
            "DELETE FROM messages WHERE queue = (SELECT queue FROM queues WHERE name = ?) AND id = ? AND state < 2"
            " AND holder IS NULL",
            name, id_,
        ).rowcount
    )  # fmt: skip


def _browse(tx: Transaction, page: Page) -> list[tuple[tuple[int, int, int], bytes, str | None]]:
    """The order's numbers, the frame and the death of each."""
    if page.category is MessageCategory.NORMAL:
        promote(tx, page.queue)
        select = (
            "SELECT rank, place, number, frame, death FROM messages WHERE lane = ? AND state = 0 AND holder IS NULL"
            " AND (rank, place, number) > (?, ?, ?) ORDER BY rank, place, number LIMIT ?"
        )
        lanes = lanes_of(tx, page.queue, None)
        rows = merge(*(tx.execute(select, lane, *page.after, page.limit) for lane in lanes), key=lambda row: row[:3])
    else:
        rows = merge(tx.execute(_PAGE[STATES[page.category]], page.queue, *page.after[1:], page.limit))
    return [(row[:3], row[3], row[4]) for row in islice(rows, page.limit)]


DECLARE, FLUSH, DELETE, CANCEL, BROWSE = action(_declare), action(_flush), action(_delete), action(_cancel), action(_browse)
STATS = action(_stats, writes=False)
NAMES = action(_names, writes=False)
