"""The bucket broker keeps the contract, on moto's server over HTTP. It frees no storage, so that is not tested here."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest

from repid_core.abc import BucketBroker
from repid_core.testing.conformance import BucketBrokerConformance
from repid_core.testing.proxy import FaultProxy
from repid_s3 import S3BucketBroker
from servers import session


class TestS3(BucketBrokerConformance):
    secrets = ("a-secret",)
    patience = timedelta(seconds=1)

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
                connect_timeout=timedelta(seconds=1),
            )

    async def break_connection(self, broker: BucketBroker) -> None:
        self.proxy.refuse()

    async def restore_connection(self, broker: BucketBroker) -> None:
        self.proxy.accept()
