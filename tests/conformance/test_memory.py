"""The in-memory brokers keep the whole contract, on a clock that the tests move."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from repid_core.abc import BucketBroker, Consumer, MessageBroker
from repid_core.memory import InMemoryBucketBroker, InMemoryMessageBroker
from repid_core.testing.clock import ManualClock
from repid_core.testing.conformance import BucketBrokerConformance, MessageBrokerConformance


class TestInMemoryMessageBroker(MessageBrokerConformance):
    in_process = "the queue is in the process, by design"

    @pytest.fixture
    def make_broker(self) -> Callable[[], MessageBroker]:
        broker = InMemoryMessageBroker(max_payload=1_000_000)
        return lambda: broker

    def manual_clock(self) -> ManualClock:
        return ManualClock()

    async def kill_consumer(self, broker: MessageBroker, consumer: Consumer) -> None:
        assert isinstance(broker, InMemoryMessageBroker)
        broker.kill(consumer)


class TestInMemoryBucketBroker(BucketBrokerConformance):
    @pytest.fixture
    def make_broker(self) -> Callable[[], BucketBroker]:
        broker = InMemoryBucketBroker(max_payload=1_000_000)
        return lambda: broker

    def manual_clock(self) -> ManualClock:
        return ManualClock()

    async def count_stored(self, broker: BucketBroker) -> int:
        assert isinstance(broker, InMemoryBucketBroker)
        return len(broker._buckets)
