"""boto3's client, made and used in threads of its own: it blocks, so no call of it may be made on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any, Final, TypeVar

from repid_core.errors import NotConnectedError
from repid_s3.settings import S3BucketBrokerSettings

_T = TypeVar("_T")

_PATIENT: Final = 1 << 20  # bytes from which on the server is asked before the body is sent


class Client:
    """One client of boto3, and as many threads as there may be requests at once.

    Args:
        settings: Of the broker.
        session: A `boto3.Session`; None for a new one.
    """

    def __init__(self, settings: S3BucketBrokerSettings, session: Any = None) -> None:
        self._settings, self._session = settings, session
        self._threads = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="repid s3")
        self._s3: Any = None
        self._closed = False

    async def open(self) -> None:
        """Make boto3's client. Raises what boto3 does of a configuration that is not valid."""
        self._s3 = await self.run(lambda _: make(self._settings, self._session))

    async def run(self, call: Callable[[Any], _T]) -> _T:
        """Call something with boto3's client, in a thread. If this is cancelled, the thread still ends what it has begun."""
        if self._closed:
            raise NotConnectedError
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, self._s3)

    async def close(self) -> None:
        """Wait for what is under way, and end the threads."""
        self._closed = True
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, self._end))

    def _end(self) -> None:
        self._threads.shutdown(wait=True)
        if self._s3 is not None:
            self._s3.close()


def make(settings: S3BucketBrokerSettings, session: Any = None) -> Any:
    """boto3's client, as set."""
    import boto3  # noqa: PLC0415 — it takes long, so it is imported here, in a thread
    from botocore.config import Config  # noqa: PLC0415

    place = settings.place
    config = Config(
        connect_timeout=settings.connect_timeout.total_seconds(),
        read_timeout=settings.read_timeout.total_seconds(),
        retries={"total_max_attempts": settings.max_attempts, "mode": "standard"},
        max_pool_connections=settings.concurrency,
        tcp_keepalive=True,
        request_checksum_calculation=settings.checksums,
        response_checksum_validation=settings.checksums,
        s3={"addressing_style": settings.addressing_style},
        user_agent_extra="repid-s3",
    )
    client = (session or boto3.Session()).client(
        "s3", region_name=place.region_name, endpoint_url=place.endpoint_url, config=config
    )
    client.meta.events.register_last("before-call.s3", _do_not_ask)  # after boto3's own, which are less particular
    return client


def _do_not_ask(params: dict[str, Any], **_: Any) -> None:
    """boto3 asks the server whether it may send a body, which is one more round trip, even for the smallest."""
    body = params.get("body")  # bytes, which boto3 has put into a file
    if isinstance(body, BytesIO) and body.getbuffer().nbytes < _PATIENT:
        params["headers"].pop("Expect", None)
