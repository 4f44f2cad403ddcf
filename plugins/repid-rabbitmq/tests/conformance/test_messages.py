"""The message broker keeps the contract, on classic and on quorum queues."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import ClassVar, Literal
from urllib.parse import urlsplit

import pytest

from repid_core.abc import Consumer, MessageBroker
from repid_core.testing.conformance import MessageBrokerConformance
from repid_core.testing.proxy import FaultProxy
from repid_rabbitmq import RabbitMessageBroker
from servers import named


class RabbitMessageBrokerSuite(MessageBrokerConformance):
    secrets = ("a-secret",)
    queue_type: ClassVar[Literal["classic", "quorum"]]

    @pytest.fixture
    async def make_broker(self, rabbitmq_url: str) -> AsyncIterator[Callable[[], MessageBroker]]:
        parts = urlsplit(rabbitmq_url)
        prefix = f"test-{uuid.uuid4().hex[:12]}"
        who = f"{parts.username or 'guest'}:{parts.password or 'guest'}"
        self.server = named(parts.hostname or "", parts.port or 5672)
        async with FaultProxy(parts.hostname or "", parts.port or 5672) as proxy:
            self.proxy = proxy
            self.address = f"127.0.0.1:{proxy.port}"
            yield lambda: RabbitMessageBroker(
                f"amqp://{who}@{self.address}{parts.path}",
                prefix=prefix,
                queue_type=self.queue_type,
                heartbeat=timedelta(seconds=1),
                max_payload=1_000_000,
                connect_timeout=timedelta(seconds=2),
            )

    @property
    def a_while(self) -> timedelta:
        """A queue's first delayed message waits until its levels are made, 25 quorum queues: seconds, on a busy machine."""
        return timedelta(seconds=5)

    async def kill_consumer(self, broker: MessageBroker, consumer: Consumer) -> None:
        assert isinstance(broker, RabbitMessageBroker)
        broker._abandon()

    async def break_connection(self, broker: MessageBroker) -> None:
        self.proxy.refuse()

    async def restore_connection(self, broker: MessageBroker) -> None:
        self.proxy.accept()


class TestOnClassicQueues(RabbitMessageBrokerSuite):
    queue_type = "classic"


class TestOnQuorumQueues(RabbitMessageBrokerSuite):
    queue_type = "quorum"
