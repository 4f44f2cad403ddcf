"""What is done with messages in the file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import islice
from typing import Final

from attrs import frozen

from repid_core.data import Enqueued, MessageCategory, OnDuplicate, QueueStats
from repid_core.errors import DeliveryLostError, DuplicateJobError, EnqueueError
from repid_sqlite.schema import DEAD, DELAYED, READY
from repid_sqlite.sessions import alive, to_dead
from repid_sqlite.transaction import Transaction, action

STATES: Final = {MessageCategory.NORMAL: READY, MessageCategory.DELAYED: DELAYED, MessageCategory.DEAD: DEAD}
_STEP: Final = 1000  # messages that one transaction promotes or removes, so that others get their turn
_MOST_BYTES: Final = 8 << 20  # that are fetched at once, unless one message is larger


@frozen
class Row:
    """A message on its way in.

    Attributes:
        queue: Its queue's name in the file.
        topic: The actor's name.
        id_: Its id.
        rank: 9 less its priority.
        due: Microseconds since the epoch; 0 is at once.
        frame: The message.
        on_duplicate: What to do if the id is live.
    """

    queue: str
    topic: str
    id_: str
    rank: int
    due: int
    frame: bytes
    on_duplicate: OnDuplicate = "raise"


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


@frozen
class Settling:
    """A message that `holder` settles; what else there is depends on how."""

    number: int
    holder: int
    queue: str
    death: str = ""
    row: Row | None = None


@frozen
class Page:
    """A part of a list: behind `after`, which is the order's three numbers."""

    queue: str
    category: MessageCategory
    after: tuple[int, int, int]
    limit: int


# Enqueue


def _enqueue(tx: Transaction, rows: Sequence[Row]) -> list[Enqueued | EnqueueError]:
    return [_enqueue_one(tx, row) for row in rows]


def _enqueue_one(tx: Transaction, row: Row) -> Enqueued | EnqueueError:
    queue, tail = _tail(tx, row.queue)
    state, place = (DELAYED, row.due) if row.due > tx.now else (READY, tail)
    lane = _lane(tx, queue, row.topic)
    cursor = tx.execute(
        "INSERT INTO messages (queue, lane, rank, state, place, id, frame) VALUES (?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (queue, id) WHERE state < 2 DO NOTHING",
        queue, lane, row.rank, state, place, row.id_, row.frame,
    )  # fmt: skip
    outcome = Enqueued.NEW
    if not cursor.rowcount:
        number, found = _live(tx, queue, row.id_)
        if row.on_duplicate == "keep":
            return Enqueued.KEPT
        if row.on_duplicate == "raise" or found == "running":
            return DuplicateJobError(row.id_, found)
        _rewrite(tx, number, lane, row, state, place)
        outcome = Enqueued.REPLACED
    tx.touch(row.queue)
    return outcome


def _tail(tx: Transaction, name: str) -> tuple[int, int]:
    """The queue, made if need be, and a place at its end."""
    row: tuple[int, int] | None = tx.execute(
        "UPDATE queues SET tail = tail + 1 WHERE name = ? RETURNING queue, tail", name
    ).fetchone()
    if row is None:
        row = tx.execute("INSERT INTO queues (name, tail) VALUES (?, 1) RETURNING queue, tail", name).fetchone()
        assert row is not None  # noqa: S101 — RETURNING gives what was inserted
    return row


def _lane(tx: Transaction, queue: int, topic: str) -> int:
    row: tuple[int] | None = tx.execute("SELECT lane FROM lanes WHERE queue = ? AND topic = ?", queue, topic).fetchone()
    if row is not None:
        return row[0]
    return tx.execute("INSERT INTO lanes (queue, topic) VALUES (?, ?)", queue, topic).lastrowid or 0


def _live(tx: Transaction, queue: int, id_: str, but: int = 0) -> tuple[int, str]:
    """The live message of this id, and its state; ("", 0) if there is none."""
    select = "SELECT number, state, place, holder FROM messages WHERE queue = ? AND id = ? AND state < 2 AND number <> ?"
    row = tx.execute(select, queue, id_, but).fetchone()
    if row is None:
        return 0, ""
    number, state, place, holder = row
    if holder is not None:
        return number, "running"
    return number, "delayed" if state == DELAYED and place > tx.now else "ready"


def _rewrite(tx: Transaction, number: int, lane: int, row: Row, state: int, place: int) -> None:
    """Put another message in the place of one; what was counted starts anew."""
    tx.execute(
        "UPDATE messages SET lane = ?, rank = ?, state = ?, place = ?, frame = ?, holder = NULL, death = NULL, deaths = 0,"
        " redelivered = 0, marked = 0 WHERE number = ?",
        lane, row.rank, state, place, row.frame, number,
    )  # fmt: skip


# Fetch


def next_due(tx: Transaction, queue: str) -> int | None:
    """When the next delayed message of a queue is due, in microseconds since the epoch."""
    row = tx.execute(
        "SELECT place FROM messages WHERE queue = (SELECT queue FROM queues WHERE name = ?) AND state = 1 AND holder IS NULL"
        " ORDER BY place LIMIT 1",
        queue,
    ).fetchone()
    return None if row is None else row[0]


def promote(tx: Transaction, name: str) -> None:
    """Make ready what is due, in the order of its due times."""
    due = next_due(tx, name)
    if due is None or due > tx.now:
        return
    queue, tail = _tail(tx, name)
    moved = tx.execute(
        "UPDATE messages SET state = 0, place = ? + due.nth FROM (SELECT number, row_number() OVER (ORDER BY place) AS nth"
        " FROM messages WHERE queue = ? AND state = 1 AND holder IS NULL AND place <= ? ORDER BY place LIMIT ?) AS due"
        " WHERE messages.number = due.number",
        tail, queue, tx.now, _STEP,
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
    lanes = _lanes(tx, want.queue, want.topics)
    if want.category is MessageCategory.NORMAL:
        select = (
            "SELECT rank, place, number, length(frame) FROM messages WHERE lane = ? AND state = 0 AND holder IS NULL"
            " ORDER BY rank, place LIMIT ?"
        )
        return merge(*(tx.execute(select, lane, limit) for lane in lanes))
    return tx.execute(
        "SELECT 0, place, number, length(frame) FROM messages WHERE queue = (SELECT queue FROM queues WHERE name = ?)"
        " AND state = ? AND state > 0 AND holder IS NULL AND lane IN (SELECT value FROM json_each(?)) ORDER BY place LIMIT ?",
        want.queue, STATES[want.category], json.dumps(lanes), limit,
    )  # fmt: skip


def _lanes(tx: Transaction, queue: str, topics: tuple[str, ...] | None) -> list[int]:
    select = "SELECT lane, topic FROM lanes WHERE queue = (SELECT queue FROM queues WHERE name = ?)"
    return [lane for lane, topic in tx.execute(select, queue) if topics is None or topic in topics]


# Settle


def _ack(tx: Transaction, settling: Settling) -> None:
    if not tx.execute("DELETE FROM messages WHERE number = ? AND holder = ?", settling.number, settling.holder).rowcount:
        raise DeliveryLostError


def _held(tx: Transaction, settling: Settling) -> tuple[int, int]:
    """The queue and the state of a message in hand.

    Raises:
        DeliveryLostError: It is not in this hand.
    """
    select = "SELECT queue, state FROM messages WHERE number = ? AND holder = ?"
    row: tuple[int, int] | None = tx.execute(select, settling.number, settling.holder).fetchone()
    if row is None:
        raise DeliveryLostError
    return row


def _nack(tx: Transaction, settling: Settling) -> None:
    queue, _ = _held(tx, settling)
    to_dead(tx, settling.number, queue, settling.death)
    tx.touch(settling.queue)


def _reject(tx: Transaction, settling: Settling) -> None:
    _held(tx, settling)
    _release(tx, settling)


def _release(tx: Transaction, settling: Settling) -> None:
    tx.execute("UPDATE messages SET holder = NULL, marked = 0 WHERE number = ?", settling.number)
    tx.touch(settling.queue)


def _requeue(tx: Transaction, settling: Settling) -> DuplicateJobError | None:
    queue, old = _held(tx, settling)
    row = settling.row
    assert row is not None  # noqa: S101 — whoever requeues gives it
    if old == DEAD:
        _, found = _live(tx, queue, row.id_, but=settling.number)
        if found:
            _release(tx, settling)
            return DuplicateJobError(row.id_, found)
    _, tail = _tail(tx, row.queue)
    state, place = (DELAYED, row.due) if row.due > tx.now else (READY, tail)
    _rewrite(tx, settling.number, _lane(tx, queue, row.topic), row, state, place)
    tx.touch(row.queue)
    return None


def _mark(tx: Transaction, settling: Settling) -> None:
    update = "UPDATE messages SET marked = 1 WHERE number = ? AND holder = ?"
    if not tx.execute(update, settling.number, settling.holder).rowcount:
        raise DeliveryLostError


def _give_back(tx: Transaction, request: tuple[int, str]) -> None:
    """Reject all that a consumer of a queue holds."""
    holder, queue = request
    if tx.execute("UPDATE messages SET holder = NULL, marked = 0 WHERE holder = ?", holder).rowcount:
        tx.touch(queue)


# Queues


def _declare(tx: Transaction, request: tuple[str, tuple[str, ...]]) -> None:
    name, topics = request
    queue, _ = _tail(tx, name)
    for topic in topics:
        _lane(tx, queue, topic)


def _flush(tx: Transaction, name: str) -> int:
    """Remove some; how many."""
    removed = 0
    for state in (DELAYED, DEAD):
        removed += tx.execute(
            "DELETE FROM messages WHERE number IN (SELECT number FROM messages WHERE queue ="
            " (SELECT queue FROM queues WHERE name = ?) AND state = ? AND state > 0 AND holder IS NULL LIMIT ?)",
            name, state, _STEP,
        ).rowcount  # fmt: skip
    for lane in _lanes(tx, name, None):
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
        tx.execute("DELETE FROM messages WHERE queue = ? AND state < 2", row[0])
        tx.execute("DELETE FROM messages WHERE queue = ? AND state > 0 AND holder IS NULL", row[0])
        tx.execute("DELETE FROM messages WHERE holder IS NOT NULL AND queue = ?", row[0])
        tx.execute("DELETE FROM lanes WHERE queue = ?", row[0])


def _stats(tx: Transaction, name: str) -> QueueStats:
    row = tx.execute("SELECT queue FROM queues WHERE name = ?", name).fetchone()
    if row is None:
        return QueueStats(0, 0, 0, 0)

    def count(where: str, *values: int) -> int:
        return tx.execute(f"SELECT count(*) FROM messages WHERE {where}", *values).fetchone()[0]  # type: ignore[no-any-return]  # noqa: S608 — a constant

    ready = sum(count("lane = ? AND state = 0 AND holder IS NULL", lane) for lane in _lanes(tx, name, None))
    aside = "queue = ? AND state > 0 AND holder IS NULL AND state = "
    due = count(aside + "1 AND place <= ?", row[0], tx.now)
    delayed = count(aside + "1 AND place > ?", row[0], tx.now)
    return QueueStats(ready + due, count("holder IS NOT NULL AND queue = ?", row[0]), delayed, count(aside + "2", row[0]))


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
        lanes = _lanes(tx, page.queue, None)
        rows = merge(*(tx.execute(select, lane, *page.after, page.limit) for lane in lanes), key=lambda row: row[:3])
    else:
        rows = iter(
            tx.execute(
                "SELECT 0, place, number, frame, death FROM messages WHERE queue = (SELECT queue FROM queues WHERE name = ?)"
                " AND state = ? AND state > 0 AND holder IS NULL AND (place, number) > (?, ?) ORDER BY place, number LIMIT ?",
                page.queue, STATES[page.category], *page.after[1:], page.limit,
            )
        )  # fmt: skip
    return [(row[:3], row[3], row[4]) for row in islice(rows, page.limit)]


ENQUEUE = action(_enqueue)
ACK, NACK, REJECT, REQUEUE, MARK = action(_ack), action(_nack), action(_reject), action(_requeue), action(_mark)
GIVE_BACK = action(_give_back)
DECLARE, FLUSH, DELETE, CANCEL, BROWSE = action(_declare), action(_flush), action(_delete), action(_cancel), action(_browse)
STATS = action(_stats, writes=False)
