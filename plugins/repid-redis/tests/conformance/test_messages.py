"""The message broker keeps the whole contract, on Redis and on Valkey."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from urllib.parse import urlsplit

import pytest

from repid_core.abc import Consumer, MessageBroker
from repid_core.testing.conformance import MessageBrokerConformance
from repid_core.testing.proxy import FaultProxy
from repid_redis import RedisMessageBroker
from servers import named


class RedisMessageBrokerSuite(MessageBrokerConformance):
    secrets = ("a-secret",)

    @pytest.fixture
    async def make_broker(self, url: str) -> AsyncIterator[Callable[[], MessageBroker]]:
        parts = urlsplit(url)
        prefix = f"test-{uuid.uuid4().hex[:12]}"
        self.server = named(url)
        async with FaultProxy(parts.hostname or "", parts.port or 6379) as proxy:
            self.proxy = proxy
            self.address = f"127.0.0.1:{proxy.port}"
            yield lambda: RedisMessageBroker(
                f"redis://{self.address}{parts.path}",
                prefix=prefix,
                lease=timedelta(seconds=1),
                max_payload=1_000_000,
                connect_timeout=timedelta(seconds=2),
            )

    async def kill_consumer(self, broker: MessageBroker, consumer: Consumer) -> None:
        assert isinstance(broker, RedisMessageBroker)
        broker._abandon()

    async def break_connection(self, broker: MessageBroker) -> None:
        self.proxy.refuse()

    async def restore_connection(self, broker: MessageBroker) -> None:
        self.proxy.accept()


class TestOnRedis(RedisMessageBrokerSuite):
    @pytest.fixture
    def url(self, redis_url: str) -> str:
        return redis_url


class TestOnValkey(RedisMessageBrokerSuite):
    @pytest.fixture
    def url(self, valkey_url: str) -> str:
        return valkey_url
