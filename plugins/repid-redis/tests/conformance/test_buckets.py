"""The bucket broker keeps the whole contract, on Redis and on Valkey."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
import redis

from repid_core.abc import BucketBroker
from repid_core.testing.conformance import BucketBrokerConformance
from repid_core.testing.proxy import FaultProxy
from repid_redis import RedisBucketBroker
from servers import Cluster, Server, eventually, named


class RedisBucketBrokerSuite(BucketBrokerConformance):
    secrets = ("a-secret",)
    settings: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    async def make_broker(self, url: str) -> AsyncIterator[Callable[[], BucketBroker]]:
        parts = urlsplit(url)
        self.url_of_server, self.prefix = url, f"test-{uuid.uuid4().hex[:12]}"
        self.server = named(url)
        async with FaultProxy(parts.hostname or "", parts.port or 6379) as proxy:
            self.proxy = proxy
            self.address = f"127.0.0.1:{proxy.port}"
            yield lambda: RedisBucketBroker(
                f"redis://:{parts.password or ''}@{self.address}{parts.path}",
                prefix=self.prefix,
                connect_timeout=timedelta(seconds=2),
                **self.settings,
            )

    async def count_stored(self, broker: BucketBroker) -> int:
        with redis.Redis.from_url(self.url_of_server) as client:
            return len(list(client.scan_iter(f"{self.prefix}:*", count=10_000)))

    async def break_connection(self, broker: BucketBroker) -> None:
        self.proxy.refuse()

    async def restore_connection(self, broker: BucketBroker) -> None:
        self.proxy.accept()


class TestOnRedis(RedisBucketBrokerSuite):
    @pytest.fixture
    def url(self, redis_url: str) -> str:
        return redis_url


class TestOnValkey(RedisBucketBrokerSuite):
    @pytest.fixture
    def url(self, serve: Callable[..., Server]) -> str:
        return serve(flavour="valkey", requirepass="a-secret").url


class TestPolled(RedisBucketBrokerSuite):
    """Servers that do not tell, and clients that may not ask them to."""

    settings: ClassVar[dict[str, Any]] = {"notify": False}

    @pytest.fixture
    def url(self, redis_url: str) -> str:
        return redis_url


class TestOnCluster(BucketBrokerConformance):
    @pytest.fixture
    def make_broker(self, cluster: Cluster) -> Callable[[], BucketBroker]:
        self.nodes, self.prefix = cluster.nodes, f"test-{uuid.uuid4().hex[:12]}"
        self.address = f"127.0.0.1:{self.nodes[0].port}"
        self.server = f"{named(self.nodes[0].url)}, {len(self.nodes)} nodes"
        return lambda: RedisBucketBroker(cluster.url, prefix=self.prefix, connect_timeout=timedelta(seconds=2))

    async def count_stored(self, broker: BucketBroker) -> int:
        found = 0
        for node in self.nodes:
            with node.client() as client:
                found += len(list(client.scan_iter(f"{self.prefix}:*", count=10_000)))
        return found

    async def break_connection(self, broker: BucketBroker) -> None:
        for node in self.nodes:
            await asyncio.to_thread(node.kill)

    async def restore_connection(self, broker: BucketBroker) -> None:
        for node in self.nodes:
            await asyncio.to_thread(node.restart)
        for node in self.nodes:
            await asyncio.to_thread(eventually, partial(_serves, node), "the cluster does not come back")


def _serves(node: Server) -> bool:
    with node.client() as client:
        return bool(client.execute_command("CLUSTER INFO").get("cluster_state") == "ok")
