"""How consumers get messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from heapq import merge
from itertools import islice
from typing import Final

from attrs import frozen

from repid_core.data import MessageCategory
from repid_sqlite.messages import tail_of
from repid_sqlite.schema import DEAD, DELAYED, READY
from repid_sqlite.sessions import alive
from repid_sqlite.transaction import Transaction

STATES: Final = {MessageCategory.NORMAL: READY, MessageCategory.DELAYED: DELAYED, MessageCategory.DEAD: DEAD}
_PROMOTED: Final = 1000  # messages in one transaction, so that others get their turn
_MOST_BYTES: Final = 8 << 20  # that are fetched at once, unless one message is larger


@frozen
class Want:
    """What a consumer waits for.

    Attributes:
        holder: The consumer.
        queue: The queue's name in the file.
        topics: Those that it asks for; None for all.
        category: Of these messages.
        room: How many it takes.
    """

    holder: int
    queue: str
    topics: tuple[str, ...] | None
    category: MessageCategory
    room: int


@frozen
class Taken:
    """A message that a consumer got."""

    number: int
    frame: bytes
    redelivered: bool
    death: str | None


def aside(select: str, rest: str) -> dict[int, str]:
    """A query of the delayed or the dead messages of a queue that nobody holds, whose first value is the queue's name."""
    where = "FROM messages WHERE queue = (SELECT queue FROM queues WHERE name = ?) AND holder IS NULL"
    return {state: f"{select} {where} AND state = {state} {rest}" for state in (DELAYED, DEAD)}


_NEXT: Final = aside("SELECT place", "ORDER BY place LIMIT 1")
_ASIDE: Final = aside(
    "SELECT 0, place, number, length(frame)", "AND lane IN (SELECT value FROM json_each(?)) ORDER BY place LIMIT ?"
)


def next_due(tx: Transaction, queue: str) -> int | None:
    """When the next delayed message of a queue is due, in microseconds since the epoch."""
    row = tx.execute(_NEXT[DELAYED], queue).fetchone()
    return None if row is None else row[0]


def promote(tx: Transaction, name: str) -> None:
    """Make ready what is due, in the order of its due times."""
    due = next_due(tx, name)
    if due is None or due > tx.now:
        return
    queue, tail = tail_of(tx, name)
    moved = tx.execute(
        "UPDATE messages SET state = 0, place = ? + due.nth FROM (SELECT number, row_number() OVER (ORDER BY place) AS nth"
        " FROM messages WHERE queue = ? AND state = 1 AND holder IS NULL AND place <= ? ORDER BY place LIMIT ?) AS due"
        " WHERE messages.number = due.number",
        tail, queue, tx.now, _PROMOTED,
    ).rowcount  # fmt: skip
    tx.execute("UPDATE queues SET tail = tail + ? WHERE queue = ?", moved, queue)
    tx.touch(name)


def available(tx: Transaction, want: Want) -> bool:
    """Whether there is something for a consumer."""
    if want.category is MessageCategory.NORMAL:
        due = next_due(tx, want.queue)
        if due is not None and due <= tx.now:
            return True
    return next(_candidates(tx, want, 1), None) is not None


def fetch(tx: Transaction, want: Want) -> list[Taken]:
    """Give a consumer what it wants.

    Raises:
        LostSessionError: This session is over, and may hold nothing.
    """
    alive(tx)
    if want.category is MessageCategory.NORMAL:
        promote(tx, want.queue)
    numbers, size = list[int](), 0
    for *_, number, length in islice(_candidates(tx, want, want.room), want.room):
        size += length
        if numbers and size > _MOST_BYTES:
            break
        numbers.append(number)
    if not numbers:
        return []
    taken = tx.execute(
        "UPDATE messages SET holder = ? WHERE number IN (SELECT value FROM json_each(?))"
        " RETURNING number, frame, redelivered, death",
        want.holder, json.dumps(numbers),
    ).fetchall()  # fmt: skip
    by_number = {row[0]: Taken(row[0], row[1], bool(row[2]), row[3]) for row in taken}
    return [by_number[number] for number in numbers]


def _candidates(tx: Transaction, want: Want, limit: int) -> Iterator[tuple[int, int, int, int]]:
    """Rank, place, number and size of what a consumer may get, in order."""
    lanes = lanes_of(tx, want.queue, want.topics)
    if want.category is MessageCategory.NORMAL:
        select = (
            "SELECT rank, place, number, length(frame) FROM messages WHERE lane = ? AND state = 0 AND holder IS NULL"
            " ORDER BY rank, place LIMIT ?"
        )
        return merge(*(tx.execute(select, lane, limit) for lane in lanes))
    return tx.execute(_ASIDE[STATES[want.category]], want.queue, json.dumps(lanes), limit)


def lanes_of(tx: Transaction, queue: str, topics: tuple[str, ...] | None) -> list[int]:
    """The lanes of a queue that carry these topics; None for all."""
    select = "SELECT lane, topic FROM lanes WHERE queue = (SELECT queue FROM queues WHERE name = ?)"
    return [lane for lane, topic in tx.execute(select, queue) if topics is None or topic in topics]
