"""Messages that stand in line, by topic, in order, and cheap to take out from anywhere; and those who wait for them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any

from repid_core.clock import Timer
from repid_core.data import Death, Envelope, MessageCategory

Rack = dict[str, "Lane"]


class Entry:
    """A message in the broker.

    Attributes:
        envelope: The message.
        key: Its place in line; unique in its queue.
        lane: Where it stands; None while it is in somebody's hand, and once it is gone.
        deaths: How many workers died while they held it, as M13 counts them.
        started: Whether the one who holds it said that it runs.
        death: How it died, if it is dead.
    """

    __slots__ = ("death", "deaths", "envelope", "key", "lane", "started")

    key: Any  # a number, or (due time, number) for a delayed message
    lane: Lane | None

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope
        self.deaths = 0
        self.started = False
        self.death: Death | None = None


class Lane:
    """The messages of one topic, sorted by key. It is on its rack as long as there are any.

    Nearly all come in order, and stand in `_line`; the others (given back, or due before one that came earlier) in `_heap`.
    One that is taken out of the middle leaves a tombstone there, an entry whose `lane` is None, until that comes to the
    front or half of all are tombstones.
    """

    __slots__ = ("_gone", "_heap", "_line", "_rack", "_topic")

    def __init__(self, rack: Rack, topic: str) -> None:
        self._rack, self._topic = rack, topic
        self._line: deque[Entry] = deque()
        self._heap: list[tuple[Any, Entry]] = []
        self._gone = 0

    def __len__(self) -> int:
        return len(self._line) + len(self._heap) - self._gone

    def __iter__(self) -> Iterator[Entry]:
        """All, in no order."""
        yield from (entry for entry in self._line if entry.lane is not None)
        yield from (entry for _, entry in self._heap if entry.lane is not None)

    def push(self, entry: Entry) -> None:
        """Put it where its key belongs."""
        entry.lane = self
        line = self._line
        if not line or line[-1].key < entry.key:
            line.append(entry)
        else:
            heappush(self._heap, (entry.key, entry))

    def first(self) -> Entry:
        """The one in front."""
        line, heap = self._line, self._heap
        if self._gone:
            while heap and heap[0][1].lane is None:
                heappop(heap)
                self._gone -= 1
            while line and line[0].lane is None:
                line.popleft()
                self._gone -= 1
        return heap[0][1] if heap and (not line or heap[0][0] < line[0].key) else line[0]

    def take(self, limit: int) -> list[Entry]:
        """Take up to `limit` from the front."""
        line, heap = self._line, self._heap
        if heap or self._gone:
            taken = []
            for _ in range(min(limit, len(self))):
                entry = self.first()
                taken.append(entry)
                if line and line[0] is entry:
                    line.popleft()
                else:
                    heappop(heap)
        else:
            taken = [line.popleft() for _ in range(min(limit, len(line)))]
        for entry in taken:
            entry.lane = None
        if not len(self):
            del self._rack[self._topic]
        return taken

    def remove(self, entry: Entry) -> None:
        """Take out one that stands here; it must not come back."""
        entry.lane = None
        self._gone += 1
        if not len(self):
            del self._rack[self._topic]
        elif self._gone > len(self):
            self._line = deque(entry for entry in self._line if entry.lane is not None)
            self._heap = [item for item in self._heap if item[1].lane is not None]
            heapify(self._heap)
            self._gone = 0


class Lease:
    """What one consumer holds of a queue.

    While the consumer lives there is nothing to renew, as both are in one process; once it is dead the lease runs out.

    Attributes:
        held: What is in its hand and not settled, with those to be told if it is lost.
        open: Whether the consumer lives.
        lost: Whether what it held was taken from it.
        timer: Runs when the consumer is dead.
        watch: The weak reference that notices when the consumer is gone.
    """

    __slots__ = ("category", "held", "lost", "open", "prefetch", "timer", "topics", "watch")

    def __init__(self, category: MessageCategory, topics: Collection[str] | None, prefetch: int) -> None:
        self.category, self.topics, self.prefetch = category, topics, prefetch
        self.held: dict[Entry, tuple[Callable[[], None], ...]] = {}
        self.open, self.lost = True, False
        self.timer: Timer | None = None
        self.watch: object = None

    def wants(self, topics: Collection[str]) -> bool:
        """Whether it has room for a message of one of these topics."""
        if len(self.held) >= self.prefetch:
            return False
        return bool(topics) if self.topics is None else any(topic in self.topics for topic in topics)


class Shelf:
    """The messages of one category: a rack of lanes for each rank, the first rank first; and who waits for them.

    A wake-up is for one message. One who cannot use it passes it on with `wake_another`, so that none is lost.
    """

    __slots__ = ("racks", "waiters")

    def __init__(self, ranks: int = 1) -> None:
        self.racks: tuple[Rack, ...] = tuple({} for _ in range(ranks))
        self.waiters: dict[asyncio.Future[None], Lease] = {}

    def __len__(self) -> int:
        return sum(len(lane) for rack in self.racks for lane in rack.values())

    def push(self, entry: Entry, rank: int = 0) -> None:
        """Put it in its lane, and wake one of those who wait for its topic."""
        topic, rack = entry.envelope.key.topic, self.racks[rank]
        lane = rack.get(topic)
        if lane is None:
            lane = rack[topic] = Lane(rack, topic)
        lane.push(entry)
        if self.waiters:
            self.wake((topic,))

    def take(self, topics: Collection[str] | None, limit: int, until: Any = None) -> list[Entry]:
        """Take up to `limit` of these topics, or of all: by rank, then by key, whatever the topic, up to the key `until`."""
        taken: list[Entry] = []
        for rack in self.racks:
            if rack and len(taken) < limit:
                lanes = list(rack.values()) if topics is None else [rack[topic] for topic in topics if topic in rack]
                if len(lanes) == 1 and until is None:
                    taken += lanes[0].take(limit - len(taken))
                elif lanes:
                    _merge(lanes, limit, until, taken)
        return taken

    def wake(self, topics: Collection[str]) -> None:
        """Wake the one who has waited longest for any of these topics, and has room."""
        for waiter, lease in self.waiters.items():
            if not waiter.done() and lease.wants(topics):
                del self.waiters[waiter]
                waiter.set_result(None)
                return

    def wake_another(self) -> None:
        """Wake one who waits for something that is here."""
        if self.waiters:
            self.wake({topic for rack in self.racks for topic in rack})

    def clear(self) -> None:
        """Drop all messages; those who wait go on waiting."""
        for rack in self.racks:
            rack.clear()


def _merge(lanes: list[Lane], limit: int, until: Any, taken: list[Entry]) -> None:
    heads = [(lane.first().key, lane) for lane in lanes]
    heapify(heads)
    while heads and len(taken) < limit and (until is None or heads[0][0] <= until):
        lane = heads[0][1]
        taken += lane.take(1)
        if len(lane):
            heapreplace(heads, (lane.first().key, lane))
        else:
            heappop(heads)
