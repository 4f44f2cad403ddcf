"""One queue in memory: which messages it has, where they are, and every way from one place to another.

A live message, one whose id is taken, is in `live` and in one of three places: on the shelf `ready`, on the shelf
`delayed`, or in a hand, that is, in the lease of one consumer. A dead one is on the shelf `dead` or in a hand. Every step is
synchronous, so it happens wholly or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from heapq import nsmallest
from itertools import count
from math import inf
from operator import itemgetter

from repid_core.clock import Clock, Timer
from repid_core.data import Death, DeathReason, Enqueued, Envelope, Limits, MessageCategory, Priority, QueueStats
from repid_core.errors import DuplicateJobError, PayloadTooLargeError
from repid_core.memory.shelf import Entry, Lease, Shelf

NORMAL, DELAYED, DEAD = MessageCategory.NORMAL, MessageCategory.DELAYED, MessageCategory.DEAD
_NEW = Enqueued.NEW
_RANKS = {priority: rank for rank, priority in enumerate(sorted(Priority, reverse=True))}
_AT_ONCE = 1000  # delayed messages made ready in one turn of the loop
_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)


class MemoryQueue:
    """See the module. `forget` is called once nothing is left here to remember."""

    __slots__ = ("_due", "_forget", "_next", "_timer", "clock", "dead", "delayed", "leases", "limits", "live", "ready")

    def __init__(self, clock: Clock, limits: Limits, forget: Callable[[], object]) -> None:
        self.clock, self.limits, self._forget = clock, limits, forget
        self.live: dict[str, Entry] = {}
        self.ready, self.delayed, self.dead = Shelf(len(_RANKS)), Shelf(), Shelf()
        self.leases: set[Lease] = set()
        self._next = count(1).__next__
        self._due: datetime | None = None  # when the timer goes off
        self._timer: Timer | None = None

    # -- messages come in ------------------------------------------------------------------------------------------------

    def put(self, envelope: Envelope) -> Enqueued:
        """Add a message, as its `on_duplicate` says if its id is live (M14)."""
        self.check_size(envelope)
        old = self.live.get(envelope.key.id_)
        if old is None:
            self._add(envelope)
            return _NEW
        if envelope.on_duplicate == "keep":
            return Enqueued.KEPT
        if envelope.on_duplicate == "raise" or old.lane is None:
            raise DuplicateJobError(envelope.key.id_, self._state(old))
        self._replace(old, envelope)
        return Enqueued.REPLACED

    def check_size(self, envelope: Envelope) -> None:
        """Raise `PayloadTooLargeError` if it is too large (M19)."""
        limit = self.limits.max_payload
        if limit is not None and len(envelope.payload) > limit:
            raise PayloadTooLargeError(len(envelope.payload), limit)

    def _state(self, entry: Entry) -> str:
        if entry.lane is None:
            return "running"
        return "delayed" if isinstance(entry.key, tuple) else "ready"

    def _add(self, envelope: Envelope) -> None:
        entry = self.live[envelope.key.id_] = Entry(envelope)
        due = envelope.due
        if due is None or due <= self.clock.now():
            self._make_ready(entry)
        else:
            entry.key = (due, self._next())
            self.delayed.push(entry)
            self._arm(due)

    def _make_ready(self, entry: Entry) -> None:
        entry.key = self._next()
        self.ready.push(entry, _RANKS[entry.envelope.key.priority])

    def _replace(self, old: Entry, envelope: Envelope) -> None:
        """A ready one that stays ready, in the same lane, keeps its place in line."""
        old_key, key = old.envelope.key, envelope.key
        stays = old_key.topic == key.topic and old_key.priority == key.priority and self._state(old) == "ready"
        if stays and (envelope.due is None or envelope.due <= self.clock.now()):
            old.envelope, old.deaths = envelope, 0
        else:
            self._take_out(old)
            self._add(envelope)

    def _take_out(self, entry: Entry) -> None:
        if entry.lane is not None:
            entry.lane.remove(entry)
        del self.live[entry.envelope.key.id_]

    # -- the clock ----------------------------------------------------------------------------------------------------------

    def wind(self, clock: Clock) -> None:
        """Go by this clock, on the running loop."""
        self.clock = clock
        self._arm_next()

    def stop(self) -> None:
        """Let nothing run any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._due = self._timer = None

    def _arm(self, due: datetime) -> None:
        if self._due is None or due < self._due:
            self.stop()
            self._due = due
            self._timer = self.clock.call_at(due, self._fall_due)

    def _arm_next(self) -> None:
        heads = [lane.first().key[0] for lane in self.delayed.racks[0].values()]
        if heads:
            self._arm(min(heads))

    def _fall_due(self) -> None:
        self.stop()
        for entry in self.delayed.take(None, _AT_ONCE, until=(self.clock.now(), inf)):
            self._make_ready(entry)
        self._arm_next()

    # -- messages go out, and come back ---------------------------------------------------------------------------------------

    def shelf(self, category: MessageCategory) -> Shelf:
        """Where the messages of this category stand."""
        return self.ready if category is NORMAL else self.delayed if category is DELAYED else self.dead

    def take(self, lease: Lease, limit: int) -> list[Entry]:
        """Put up to `limit` messages into the hand of a lease."""
        taken = self.shelf(lease.category).take(lease.topics, limit)
        lease.held.update(dict.fromkeys(taken, ()))
        return taken

    def release(self, lease: Lease, entry: Entry) -> bool:
        """Take one out of the hand for its settlement; False if it is not there any more."""
        held = lease.held
        if held.pop(entry, None) is None:
            return False
        if len(held) == lease.prefetch - 1:  # there was no room before
            self.shelf(lease.category).wake_another()
        return True

    def finish(self, entry: Entry) -> None:
        """One in hand is done."""
        if entry.death is None:
            del self.live[entry.envelope.key.id_]

    def bury(self, entry: Entry, death: Death) -> None:
        """One in hand goes to DEAD; a dead one dies anew."""
        self.finish(entry)
        entry.death, entry.key, entry.deaths, entry.started = death, self._next(), 0, False
        self.dead.push(entry)

    def give_back(self, entry: Entry) -> None:
        """One in hand goes back to the place in line that it had; a delayed one that has fallen due meanwhile is ready."""
        entry.started = False
        if entry.death is not None:
            self.dead.push(entry)
        elif not isinstance(entry.key, tuple):
            self.ready.push(entry, _RANKS[entry.envelope.key.priority])
        elif entry.key[0] <= self.clock.now():
            self._make_ready(entry)
        else:
            self.delayed.push(entry)
            self._arm(entry.key[0])

    def check_requeue(self, entry: Entry, envelope: Envelope) -> None:
        """Raise if `envelope` cannot take the place of one in hand."""
        old, new = entry.envelope.key, envelope.key
        if (old.id_, old.queue) != (new.id_, new.queue):
            raise ValueError(f"message {old.id_!r} of queue {old.queue!r} cannot be requeued as {new.id_!r} of {new.queue!r}")
        self.check_size(envelope)
        if entry.death is not None and (live := self.live.get(new.id_)) is not None:
            raise DuplicateJobError(new.id_, self._state(live))

    def requeue(self, entry: Entry, envelope: Envelope) -> None:
        """Put `envelope`, of the same id, in the place of one in hand; its deaths are forgotten."""
        self._add(envelope)

    # -- leases ------------------------------------------------------------------------------------------------------------------

    def close(self, lease: Lease) -> None:
        """The consumer is done: what it holds goes back."""
        self._end(lease)
        for entry in lease.held:
            self.give_back(entry)
        lease.held.clear()
        self.leave(lease)

    def abandon(self, lease: Lease) -> None:
        """The consumer is dead: what it holds is lost to it when the lease runs out (M3)."""
        if lease.open:
            self._end(lease)
            lease.timer = self.clock.call_at(self.clock.now() + self.limits.lease, lambda: self.reap(lease))

    def reap(self, lease: Lease) -> None:
        """The lease of a dead consumer has run out: others get what it held, or DEAD what has killed too many (M13)."""
        if lease.timer is not None:
            lease.timer.cancel()
        lease.lost = True
        loop = asyncio.get_running_loop()
        for entry, callbacks in lease.held.items():
            for callback in callbacks:
                loop.call_soon(callback)
            if lease.category is NORMAL and (entry.started or not entry.deaths):
                entry.deaths += 1
            if entry.deaths < self.limits.max_deliveries:
                self.give_back(entry)
            else:
                attempts = entry.envelope.parameters.tried + entry.deaths
                error = f"{entry.deaths} workers died while they ran it"
                self.bury(entry, Death(DeathReason.POISON, self.clock.now(), attempts, error))
        lease.held.clear()
        self.leave(lease)

    def _end(self, lease: Lease) -> None:
        """It takes no more; whoever waits on its behalf hears of it, and passes on a wake-up that it may have had."""
        lease.open, lease.watch = False, None
        shelf = self.shelf(lease.category)
        for waiter in [waiter for waiter, waiting in shelf.waiters.items() if waiting is lease]:
            del shelf.waiters[waiter]
            if not waiter.done():
                waiter.set_result(None)
        shelf.wake_another()

    def leave(self, lease: Lease) -> None:
        """Forget a lease, and the queue if nothing is left of it."""
        self.leases.discard(lease)
        if not (self.leases or self.live or len(self.dead)):
            self._forget()

    # -- the operator's view -----------------------------------------------------------------------------------------------------

    def cancel(self, id_: str) -> bool:
        """Remove a ready or delayed message (M15)."""
        entry = self.live.get(id_)
        if entry is None or entry.lane is None:
            return False
        self._take_out(entry)
        return True

    def flush(self) -> None:
        """Remove all but what is in hand (M16)."""
        self.stop()
        self.live = {id_: entry for id_, entry in self.live.items() if entry.lane is None}
        for shelf in (self.ready, self.delayed, self.dead):
            shelf.clear()

    def delete(self) -> None:
        """Remove all; to settle what is in hand does nothing from now on (M16)."""
        self.flush()
        self.live.clear()
        for lease in self.leases:
            lease.held.clear()
        if not self.leases:
            self._forget()

    def stats(self) -> QueueStats:
        """Count; whatever is in a hand is in progress, and nowhere else (M12)."""
        in_progress = sum(len(lease.held) for lease in self.leases)
        return QueueStats(len(self.ready), in_progress, len(self.delayed), len(self.dead))

    def browse(self, category: MessageCategory, after: tuple[int, ...], limit: int) -> list[tuple[tuple[int, ...], Entry]]:
        """What stands in line behind a place, in order, each with its place."""
        places = (
            (_place_of(rank, entry), entry)
            for rank, rack in enumerate(self.shelf(category).racks)
            for lane in rack.values()
            for entry in lane
        )
        return nsmallest(limit, (item for item in places if item[0] > after), key=itemgetter(0))


def _place_of(rank: int, entry: Entry) -> tuple[int, ...]:
    if isinstance(entry.key, tuple):
        due, number = entry.key
        return rank, (due - _EPOCH) // _MICROSECOND, number
    return rank, entry.key
