"""How messages get into the file, and how they are settled."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from repid_core.data import Enqueued, OnDuplicate
from repid_core.errors import DeliveryLostError, DuplicateJobError, EnqueueError
from repid_sqlite.schema import DEAD, DELAYED, READY
from repid_sqlite.sessions import to_dead
from repid_sqlite.transaction import Transaction, action


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
class Settling:
    """A message that `holder` settles; what else there is depends on how."""

    number: int
    holder: int
    queue: str
    death: str = ""
    row: Row | None = None


def _enqueue(tx: Transaction, rows: Sequence[Row]) -> list[Enqueued | EnqueueError]:
    return [_enqueue_one(tx, row) for row in rows]


def _enqueue_one(tx: Transaction, row: Row) -> Enqueued | EnqueueError:
    queue, tail = tail_of(tx, row.queue)
    state, place = (DELAYED, row.due) if row.due > tx.now else (READY, tail)
    lane = lane_of(tx, queue, row.topic)
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


def tail_of(tx: Transaction, name: str) -> tuple[int, int]:
    """The queue, made if need be, and a place at its end."""
    row: tuple[int, int] | None = tx.execute(
        "UPDATE queues SET tail = tail + 1 WHERE name = ? RETURNING queue, tail", name
    ).fetchone()
    if row is None:
        row = tx.execute("INSERT INTO queues (name, tail) VALUES (?, 1) RETURNING queue, tail", name).fetchone()
        assert row is not None  # noqa: S101 — RETURNING gives what was inserted
    return row


def lane_of(tx: Transaction, queue: int, topic: str) -> int:
    """The part of a queue that carries this topic, made if need be."""
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
    _, tail = tail_of(tx, row.queue)
    state, place = (DELAYED, row.due) if row.due > tx.now else (READY, tail)
    _rewrite(tx, settling.number, lane_of(tx, queue, row.topic), row, state, place)
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


ENQUEUE = action(_enqueue)
ACK, NACK, REJECT, REQUEUE, MARK = action(_ack), action(_nack), action(_reject), action(_requeue), action(_mark)
GIVE_BACK = action(_give_back)
