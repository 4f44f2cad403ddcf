"""The bucket broker keeps the contract, on moto's server and on SeaweedFS, over HTTP. S3 frees storage: see test_expiry.py."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import pytest

from repid_core.abc import BucketBroker
from repid_core.testing.conformance import BucketBrokerConformance
from repid_core.testing.proxy import FaultProxy
from repid_s3 import S3BucketBroker
from servers import Seaweed, session


class OnServer(BucketBrokerConformance):
    secrets = ("a-secret",)
    patience = timedelta(seconds=5)

    @pytest.fixture
    async def make_broker(self, s3_url: str, client: Any) -> AsyncIterator[Callable[[], BucketBroker]]:
        name = f"test-{uuid.uuid4().hex[:12]}"
        client.create_bucket(Bucket=name)
        parts = urlsplit(s3_url)
        async with FaultProxy(parts.hostname or "", parts.port or 0) as proxy:
            self.proxy = proxy
            self.address = f"127.0.0.1:{proxy.port}"
            yield lambda: S3BucketBroker(
                f"s3://{name}/jobs/?endpoint_url=http://{self.address}",
                session=session(),
                max_payload=1_000_000,
                connect_timeout=timedelta(seconds=5),
                poll_longest=timedelta(seconds=0.5),  # by which the suite measures for how long nothing may come
            )

    async def break_connection(self, broker: BucketBroker) -> None:
        self.proxy.refuse()

    async def restore_connection(self, broker: BucketBroker) -> None:
        self.proxy.accept()


class TestMoto(OnServer):
    @pytest.fixture
    def s3_url(self, moto_url: str) -> str:
        self.server = f"moto {version('moto')}"
        return moto_url


class TestSeaweedFS(OnServer):
    @pytest.fixture
    def s3_url(self, seaweed: Seaweed) -> str:
        self.server = seaweed.version
        return seaweed.url
