"""What plugins inherit: the defaults of the contract's classes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from repid_core.abc import BucketBroker, Consumer, Converter, Delivery, MessageBroker, Middleware
from repid_core.data import Death, Enqueued, Envelope, MessageCategory, Parameters, QueueStats, RoutingKey
from repid_core.errors import (
    AlreadySettledError,
    BrokerConnectionError,
    BucketBrokerError,
    ConversionError,
    DuplicateJobError,
    EnqueueError,
    ResultTimeoutError,
    UnsupportedFeatureError,
)
from repid_core.testing.clock import ManualClock

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
MILLISECOND, SECOND = timedelta(milliseconds=1), timedelta(seconds=1)


def envelope(id_: str) -> Envelope:
    return Envelope(RoutingKey(id_, "act"), Parameters(NOW))


class Broker(MessageBroker):
    """Nothing but what is required; `refuse` says which ids raise what."""

    def __init__(self, refuse: dict[str, Exception] | None = None) -> None:
        self.refuse = refuse or {}
        self.tried: list[str] = []

    async def connect(self) -> None: ...

    async def disconnect(self) -> None: ...

    async def enqueue(self, envelope: Envelope) -> Enqueued:
        self.tried.append(envelope.key.id_)
        if error := self.refuse.get(envelope.key.id_):
            raise error
        return Enqueued.NEW

    def consumer(
        self,
        queue: str,
        topics: Collection[str] | None,
        *,
        prefetch: int,
        category: MessageCategory = MessageCategory.NORMAL,
    ) -> Consumer:
        raise AssertionError

    async def declare_queue(self, queue: str, topics: Collection[str] = ()) -> None: ...

    async def flush_queue(self, queue: str) -> None: ...

    async def delete_queue(self, queue: str) -> None: ...

    async def queue_stats(self, queue: str) -> QueueStats:
        return QueueStats(None, None, None, None)


class TestMessageBroker:
    async def test_enqueue_many_goes_in_order_and_gives_one_outcome_each(self) -> None:
        refused, duplicate = EnqueueError("refused"), DuplicateJobError("c", "ready")
        broker = Broker({"b": refused, "c": duplicate})
        assert await broker.enqueue_many([envelope(id_) for id_ in "abcd"]) == [Enqueued.NEW, refused, duplicate, Enqueued.NEW]
        assert broker.tried == ["a", "b", "c", "d"]

    async def test_enqueue_many_of_nothing(self) -> None:
        assert await Broker().enqueue_many([]) == []

    async def test_a_connection_lost_on_the_way_leaves_an_outcome_for_each(self) -> None:
        away = BrokerConnectionError("amqp://localhost:5672 is away")
        broker = Broker({"b": away})
        first, *others = await broker.enqueue_many([envelope(id_) for id_ in "abcd"])
        assert first is Enqueued.NEW
        assert [str(error) for error in others] == ["amqp://localhost:5672 is away"] * 3
        assert all(isinstance(error, EnqueueError) and error.__cause__ is away for error in others)
        assert broker.tried == ["a", "b"]

    async def test_a_connection_that_is_away_from_the_start_is_raised(self) -> None:
        with pytest.raises(BrokerConnectionError):
            await Broker({"a": BrokerConnectionError()}).enqueue_many([envelope("a"), envelope("b")])

    async def test_what_needs_a_capability_says_so(self) -> None:
        with pytest.raises(UnsupportedFeatureError, match="Broker does not support CANCEL"):
            await Broker().cancel("default", "a")
        with pytest.raises(UnsupportedFeatureError, match="Broker does not support BROWSE"):
            Broker().browse("default", MessageCategory.DEAD)

    async def test_there_is_nothing_to_ping(self) -> None:
        await Broker().ping()

    def test_it_promises_nothing_that_it_does_not_declare(self) -> None:
        assert Broker().capabilities == frozenset()


class Held(Delivery):
    def __init__(self) -> None:
        self.settled: list[str] = []

    @property
    def envelope(self) -> Envelope:
        return envelope("a")

    async def ack(self) -> None:
        self.claim()
        self.settled.append("ack")

    async def nack(self, death: Death) -> None:
        self.claim()
        self.settled.append("nack")

    async def reject(self) -> None:
        self.claim()
        self.settled.append("reject")

    async def requeue(self, envelope: Envelope) -> None:
        self.claim()
        self.settled.append("requeue")


class TestDelivery:
    async def test_the_first_settlement_wins(self) -> None:
        delivery = Held()
        await delivery.ack()
        with pytest.raises(AlreadySettledError, match="only the first ack, nack, reject or requeue counts"):
            await delivery.reject()
        with pytest.raises(AlreadySettledError):
            await delivery.ack()
        assert delivery.settled == ["ack"]

    async def test_one_settled_leaves_others_open(self) -> None:
        await Held().ack()
        await Held().ack()

    async def test_marking_and_losing_are_nothing_by_default(self) -> None:
        delivery = Held()
        await delivery.mark_started()
        delivery.on_lost(lambda: delivery.settled.append("lost"))
        assert delivery.settled == []


class Store(BucketBroker):
    """A dictionary in which every call waits for `turn`."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.active = self.most = 0
        self.turn = asyncio.Event()
        self.turn.set()
        self.refuse: dict[str, Exception] = {}
        self.asked_at: list[datetime] = []

    async def connect(self) -> None: ...

    async def disconnect(self) -> None: ...

    async def _work(self, id_: str) -> None:
        self.calls.append(id_)
        self.active += 1
        self.most = max(self.most, self.active)
        try:
            await self.turn.wait()
            if error := self.refuse.get(id_):
                raise error
        finally:
            self.active -= 1

    async def store_bucket(self, id_: str, data: bytes, ttl: timedelta | None) -> None:
        await self._work(id_)
        self.data[id_] = data

    async def get_bucket(self, id_: str) -> bytes | None:
        self.asked_at.append(self.clock.now())
        await self._work(id_)
        return self.data.get(id_)

    async def delete_bucket(self, id_: str) -> None:
        await self._work(id_)
        self.data.pop(id_, None)


@pytest.fixture
def store() -> Store:
    store = Store()
    store.clock = ManualClock(NOW)
    return store


async def settle(store: Store) -> None:
    assert isinstance(store.clock, ManualClock)
    await store.clock.settle()


class TestBucketBroker:
    IDS = tuple(f"id-{number}" for number in range(50))

    async def test_many_keep_the_order_of_ids(self, store: Store) -> None:
        await store.store_many([(id_, id_.encode(), None) for id_ in self.IDS])
        assert await store.get_many([*reversed(self.IDS), "missing", "id-0"]) == [
            *(id_.encode() for id_ in reversed(self.IDS)),
            None,
            b"id-0",
        ]
        await store.delete_many(self.IDS[1:])
        assert store.data == {"id-0": b"id-0"}

    async def test_many_of_nothing(self, store: Store) -> None:
        await store.store_many([])
        await store.delete_many([])
        assert await store.get_many([]) == []

    async def test_of_one_id_the_last_wins(self, store: Store) -> None:
        await store.store_many([("a", b"1", None), ("b", b"2", None), ("a", b"3", SECOND)])
        assert store.data == {"a": b"3", "b": b"2"}
        assert sorted(store.calls) == ["a", "b"]

    async def test_sixteen_are_in_flight_at_most(self, store: Store) -> None:
        store.turn.clear()
        task = asyncio.create_task(store.get_many(self.IDS))
        await settle(store)
        assert store.active == 16
        store.turn.set()
        await task
        assert (store.most, len(store.calls)) == (16, 50)

    async def test_a_failure_is_raised_when_all_have_ended(self, store: Store) -> None:
        first, second = BucketBrokerError("first"), BucketBrokerError("second")
        store.refuse = {"id-3": first, "id-40": second}
        with pytest.raises(BucketBrokerError) as caught:
            await store.store_many([(id_, b"", None) for id_ in self.IDS])
        assert caught.value is first
        assert len(store.data) == 48

    async def test_cancelled_it_leaves_nothing_running(self, store: Store) -> None:
        store.turn.clear()
        task = asyncio.create_task(store.get_many(self.IDS))
        await settle(store)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert store.active == 0

    async def test_what_is_there_is_not_waited_for(self, store: Store) -> None:
        store.data["a"] = b"1"
        assert await store.wait_for("a", None) == b"1"
        assert await store.wait_for("a", timedelta(0)) == b"1"
        assert store.asked_at == [NOW, NOW]

    async def test_it_asks_with_pauses_that_grow_from_10_ms_to_1_s(self, store: Store) -> None:
        assert isinstance(store.clock, ManualClock)
        task = asyncio.create_task(store.wait_for("a", None))
        await store.clock.advance(10 * SECOND)
        store.data["a"] = b"1"
        await store.clock.advance(SECOND)
        assert await task == b"1"
        pauses = [later - earlier for earlier, later in zip(store.asked_at, store.asked_at[1:], strict=False)]
        assert pauses[0] == 10 * MILLISECOND
        assert pauses == sorted(pauses)
        assert pauses[-1] == SECOND

    async def test_it_gives_up_when_the_time_is_over_and_asks_then_once_more(self, store: Store) -> None:
        assert isinstance(store.clock, ManualClock)
        task = asyncio.create_task(store.wait_for("a", 2 * SECOND))
        await store.clock.advance(2 * SECOND - MILLISECOND)
        assert not task.done()
        await store.clock.advance(MILLISECOND)
        with pytest.raises(ResultTimeoutError):
            await task
        assert store.asked_at[-1] == NOW + 2 * SECOND


class Plain(Converter):
    def convert_inputs(self, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), dict(value)

    def convert_outputs(self, value: Any) -> Any:
        return value


def every_kind(a: int, /, b: int, *rest: int, c: int = 0, **more: int) -> None: ...


def only_positional(a: int, /, **more: int) -> None: ...


def with_injected(a: int, session: object) -> None: ...


class TestConverter:
    @pytest.mark.parametrize(
        ("args", "kwargs", "data"),
        [
            ((1, 2), {}, {"a": 1, "b": 2}),
            ((1,), {"b": 2}, {"a": 1, "b": 2}),
            ((1, 2, 3, 4), {"c": 5, "x": 6}, {"a": 1, "b": 2, "rest": (3, 4), "c": 5, "x": 6}),
            ((1, 2), {"x": 3}, {"a": 1, "b": 2, "x": 3}),
        ],
    )
    def test_call_arguments_go_by_name(self, args: tuple[Any, ...], kwargs: dict[str, Any], data: dict[str, Any]) -> None:
        assert Plain(every_kind).dump_inputs(args, kwargs) == data

    @pytest.mark.parametrize(
        ("fn", "args", "kwargs", "reason"),
        [
            (every_kind, (), {}, "missing a required argument: 'a'"),
            (every_kind, (1, 2), {"b": 3}, "multiple values for argument 'b'"),
            (with_injected, (1, 2), {}, "too many positional arguments"),
            (with_injected, (1,), {"session": 2}, "unexpected keyword argument 'session'"),
            (only_positional, (1,), {"a": 2}, "a: is given twice"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, fn: Callable[..., None], args: tuple[Any, ...], kwargs: dict[str, Any], reason: str
    ) -> None:
        with pytest.raises(ConversionError, match=reason):
            Plain(fn, frozenset({"session"})).dump_inputs(args, kwargs)

    def test_what_is_injected_is_no_argument(self) -> None:
        assert Plain(with_injected, frozenset({"session"})).dump_inputs((1,), {}) == {"a": 1}

    def test_results_are_data_by_default(self) -> None:
        data = {"a": [1]}
        assert Plain(every_kind).load_outputs(data) is data


class TestMiddleware:
    async def test_it_passes_on_by_default(self) -> None:
        async def enqueue(envelopes: Sequence[Envelope]) -> Sequence[Enqueued | EnqueueError]:
            return [Enqueued.KEPT] * len(envelopes)

        async def run(envelope: Envelope) -> str:
            return envelope.key.id_

        assert await Middleware().around_enqueue([envelope("a")], enqueue) == [Enqueued.KEPT]
        assert await Middleware().around_actor_run(envelope("a"), run) == "a"
