"""What the in-memory bucket broker promises beyond the conformance suite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from repid_core.errors import NotConnectedError, PayloadTooLargeError, ResultTimeoutError
from repid_core.memory import InMemoryBucketBroker, InMemoryBucketBrokerSettings
from repid_core.testing.clock import ManualClock

SECOND = timedelta(seconds=1)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def broker(clock: ManualClock) -> AsyncIterator[InMemoryBucketBroker]:
    """Connected; checks at the end that nothing is left running."""
    broker = InMemoryBucketBroker(use_result_bucket=True, max_payload=100)
    broker.clock = clock
    await broker.connect()
    yield broker
    await broker.disconnect()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert broker._waiting == {}
    assert [timer for *_, timer in clock._timers if timer.callback is not None] == []


async def waiting(broker: InMemoryBucketBroker, id_: str, timeout: timedelta | None) -> asyncio.Task[bytes]:
    task = asyncio.ensure_future(broker.wait_for(id_, timeout))
    await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_overwriting_one_id_for_ever_takes_no_more_room(broker: InMemoryBucketBroker, clock: ManualClock) -> None:
    for number in range(1_000):
        await broker.store_bucket("same", b"x", timedelta(days=1 + number))
        await broker.store_bucket(f"gone{number}", b"x", timedelta(days=1))
        await broker.delete_bucket(f"gone{number}")
    assert len(broker._buckets) == 1
    assert len(broker._deadlines) < 20


async def test_the_deadline_is_that_of_the_last_write(broker: InMemoryBucketBroker, clock: ManualClock) -> None:
    """A write with a later deadline, or none, outlives the earlier one's, also while others are freed."""
    await broker.store_many([("later", b"1", SECOND), ("never", b"1", SECOND), ("gone", b"1", SECOND)])
    await broker.store_many([("later", b"2", 9 * SECOND), ("never", b"2", None)])
    await clock.advance(SECOND)
    assert await broker.get_many(["later", "gone", "never"]) == [b"2", None, b"2"]
    await broker.store_bucket("other", b"", None)
    assert set(broker._buckets) == {"later", "never", "other"}
    await clock.advance(8 * SECOND)
    assert await broker.get_many(["later", "never"]) == [None, b"2"]


async def test_everyone_who_waits_is_told(broker: InMemoryBucketBroker) -> None:
    tasks = [await waiting(broker, "result", None), await waiting(broker, "result", SECOND)]
    other = await waiting(broker, "other", None)
    await broker.store_bucket("result", b"data", None)
    await broker.delete_bucket("result")
    assert await asyncio.gather(*tasks) == [b"data", b"data"]
    assert not other.done()
    other.cancel()


async def test_waiting_ends_at_its_timeout(broker: InMemoryBucketBroker, clock: ManualClock) -> None:
    task = await waiting(broker, "result", SECOND)
    await clock.advance(SECOND - timedelta(microseconds=1))
    assert not task.done()
    await clock.advance(timedelta(microseconds=1))
    with pytest.raises(ResultTimeoutError):
        await task


async def test_a_cancelled_wait_leaves_nothing_behind(broker: InMemoryBucketBroker) -> None:
    first, second = await waiting(broker, "result", SECOND), await waiting(broker, "result", SECOND)
    first.cancel()
    await broker.store_bucket("result", b"data", None)  # the cancelled one has not run yet
    assert await second == b"data"
    assert first.cancelled()


async def test_waiting_ends_when_the_broker_is_closed(broker: InMemoryBucketBroker) -> None:
    task = await waiting(broker, "result", None)
    await broker.disconnect()
    with pytest.raises(NotConnectedError):
        await task


async def test_buckets_outlive_a_reconnect(broker: InMemoryBucketBroker, clock: ManualClock) -> None:
    await broker.store_many([("kept", b"1", None), ("gone", b"2", SECOND)])
    await broker.disconnect()
    with pytest.raises(NotConnectedError):
        await broker.get_bucket("kept")
    await clock.advance(SECOND)
    await broker.connect()
    assert await broker.get_many(["kept", "gone"]) == [b"1", None]


async def test_one_that_is_too_large_is_not_stored(broker: InMemoryBucketBroker) -> None:
    await broker.store_bucket("a", b"old", None)
    with pytest.raises(PayloadTooLargeError, match="101 bytes and the limit is 100"):
        await broker.store_many([("a", bytes(101), None)])
    assert await broker.get_bucket("a") == b"old"
    await broker.delete_many(["a", "b"])
    assert broker._buckets == {}


def test_settings_and_arguments_are_the_same() -> None:
    configured = InMemoryBucketBroker.from_settings(InMemoryBucketBrokerSettings(use_result_bucket=True, max_payload=7))
    assert configured.limits == InMemoryBucketBroker(True, 7).limits
    with pytest.raises(ValueError, match="max_payload"):
        InMemoryBucketBroker(max_payload=-1)
