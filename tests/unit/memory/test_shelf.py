"""Lines that are sorted, cheap, and leave nothing behind."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, timedelta, tzinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repid_core.data import Envelope, Limits, Parameters, Priority, RoutingKey
from repid_core.memory.queue import MemoryQueue
from repid_core.memory.shelf import Entry, Lane, Rack, Shelf
from repid_core.testing.clock import ManualClock

PARAMETERS = Parameters(timestamp=datetime(2030, 1, 1, tzinfo=UTC))


def entry(key: int, topic: str = "work") -> Entry:
    made = Entry(Envelope(RoutingKey(f"m{key}", topic), PARAMETERS))
    made.key = key
    return made


def keys(entries: list[Entry]) -> list[int]:
    return [entry.key for entry in entries]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.integers(0, 1000)),
            st.tuples(st.just("take"), st.integers(1, 4)),
            st.tuples(st.just("remove"), st.integers(0, 1000)),
        ),
        max_size=200,
    )
)
def test_a_lane_is_a_sorted_list(steps: list[tuple[str, int]]) -> None:
    """Whatever is pushed, taken and removed, in whatever order; and it is on its rack just as long as it is not empty."""
    shelf = Shelf()
    model: list[Entry] = []
    used: set[int] = set()
    for step, number in steps:
        if step == "push" and number not in used:
            used.add(number)
            shelf.push(added := entry(number))
            model = sorted([*model, added], key=lambda entry: entry.key)
        elif step == "take":
            assert shelf.take(None, number) == model[:number]
            del model[:number]
        elif step == "remove" and model:
            gone = model.pop(number % len(model))
            assert gone.lane is not None
            gone.lane.remove(gone)
        assert list(shelf.racks[0]) == ["work"] * bool(model)
        for lane in shelf.racks[0].values():
            assert len(lane) == len(model)
            assert sorted(keys(list(lane))) == keys(model)
            assert lane.first() is model[0]


def test_a_lane_that_is_emptied_leaves_its_rack() -> None:
    shelf = Shelf()
    one, two = entry(1, "a"), entry(2, "b")
    shelf.push(one)
    shelf.push(two)
    shelf.take({"a"}, 1)
    assert list(shelf.racks[0]) == ["b"]
    assert two.lane is not None
    two.lane.remove(two)
    assert list(shelf.racks[0]) == []


@pytest.mark.parametrize("shuffled", [False, True], ids=["in line", "in the heap"])
def test_tombstones_never_outnumber_messages(shuffled: bool) -> None:
    """Removing from the middle, for ever, keeps no more than twice what is there."""
    rack: Rack = {}
    lane = rack["work"] = Lane(rack, "work")
    lane.push(entry(0))
    kept = []
    for number in range(1, 5_000):
        added = entry(-number if shuffled else number)
        lane.push(added)
        kept.append(added)
        if len(kept) > 50:
            lane.remove(kept.pop(7))
        assert len(lane._line) + len(lane._heap) <= 2 * len(lane) + 1


@pytest.mark.parametrize("seed", range(20))
def test_a_lane_is_still_sorted_after_it_was_cleared_of_tombstones(seed: int) -> None:
    shelf, order = Shelf(), random.Random(seed)
    made = [entry(number) for number in order.sample(range(100), 100)]
    for one in made:
        shelf.push(one)
    gone = order.sample(made, 60)
    for one in gone:
        assert one.lane is not None
        one.lane.remove(one)
    assert keys(shelf.take(None, 100)) == sorted({one.key for one in made} - {one.key for one in gone})


def test_topics_are_merged_in_order_and_others_left_alone() -> None:
    shelf = Shelf(2)
    for key in range(9):
        shelf.push(entry(key, "abc"[key % 3]), rank=key % 2)
    assert keys(shelf.take({"a", "b", "z"}, 4)) == [0, 4, 6, 1]
    assert keys(shelf.take(None, 9)) == [2, 8, 3, 5, 7]
    assert len(shelf) == 0


class Counted(datetime):
    """A time that counts how often it is compared."""

    compared = 0

    def __lt__(self, other: date) -> bool:
        Counted.compared += 1
        return datetime.__lt__(self, other)  # type: ignore[operator]

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return super().__eq__(other)

    __hash__ = datetime.__hash__


def comparisons(count: int) -> float:
    """How many comparisons a delayed message costs, from its enqueue until it is ready, with `count` in the queue."""
    clock = ManualClock()
    queue = MemoryQueue(clock, Limits(), lambda: None)
    start = clock.now() + timedelta(seconds=1)
    Counted.compared = 0
    for number in range(count):
        due = start + timedelta(microseconds=number * 7919 % count)
        at = Counted(due.year, due.month, due.day, due.hour, due.minute, due.second, due.microsecond, UTC)
        queue.put(Envelope(RoutingKey(f"m{number}", "work", priority=Priority.MEDIUM), PARAMETERS, due=at))
    clock._now += timedelta(hours=1)
    while len(queue.delayed):
        queue._fall_due()
    assert len(queue.ready) == count
    return Counted.compared / count


async def test_a_delay_costs_the_logarithm_of_how_many_there_are() -> None:
    """Ten times the messages cost each a few comparisons more, not ten times as many."""
    few, many = comparisons(5_000), comparisons(50_000)
    assert few < 60
    assert many - few < 15


def test_a_time_zone_of_its_own_does_not_disturb_the_order() -> None:
    class Odd(tzinfo):
        def utcoffset(self, dt: datetime | None) -> timedelta:
            return timedelta(hours=5, minutes=45)

        def dst(self, dt: datetime | None) -> timedelta:
            return timedelta(0)

        def tzname(self, dt: datetime | None) -> str:
            return "odd"

    shelf = Shelf()
    noon = datetime(2030, 1, 1, 12, tzinfo=UTC)
    for number, due in enumerate([noon, (noon - timedelta(seconds=1)).astimezone(Odd()), noon + timedelta(seconds=1)]):
        made = entry(number)
        made.key = (due, number)
        shelf.push(made)
    assert [entry.key[1] for entry in shelf.take(None, 3)] == [1, 0, 2]
