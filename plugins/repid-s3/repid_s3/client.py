"""boto3's client, made and used in threads of its own: it blocks, so no call of it may be made on the event loop."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import SEEK_END, BytesIO
from typing import Any, Final, TypeVar

from repid_core.errors import NotConnectedError
from repid_s3.settings import S3BucketBrokerSettings

_T = TypeVar("_T")

_PATIENT: Final = 1 << 20  # bytes from which on the server is asked before the body is sent
_PREPARED_AT_ONCE: Final = 2  # requests; one keeps the event loop waiting less, and two keep both sides busy


class _Turns:
    """Lets few threads prepare a request at once, and any number wait for the server.

    To prepare and sign one is all computing. Each thread that computes holds Python's lock for 5 ms before it passes it on, so
    with dozens of them the event loop would come to its turn only after dozens of times that.
    """

    def __init__(self) -> None:
        self._permits = threading.Semaphore(_PREPARED_AT_ONCE)
        self._mine = threading.local()

    def take(self) -> None:
        self._permits.acquire()
        self._mine.held = True

    def give(self, **_: Any) -> None:
        """What a thread has taken; nothing if it has none. As a handler of boto3's events, it lets the request be sent."""
        if getattr(self._mine, "held", False):
            self._mine.held = False
            self._permits.release()


class Client:
    """One client of boto3, and as many threads as there may be requests at once.

    Args:
        settings: Of the broker.
        session: A `boto3.Session`; None for a new one.
    """

    def __init__(self, settings: S3BucketBrokerSettings, session: Any = None) -> None:
        self._settings, self._session = settings, session
        self._threads = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="repid s3")
        self._turns = _Turns()
        self._s3: Any = None
        self._closed = False

    async def open(self) -> None:
        """Make boto3's client, and start the threads. Raises what boto3 does of a configuration that is not valid."""
        self._s3 = await self.run(lambda _: make(self._settings, self._session))
        self._s3.meta.events.register_last("before-send.s3", self._turns.give)
        await self.run(lambda _: self._start())

    def _start(self) -> None:
        """Start all threads: who starts one waits for it to run, which is not for the event loop to do under load."""
        met = threading.Barrier(self._settings.concurrency)
        try:
            for _ in range(self._settings.concurrency - 1):
                self._threads.submit(met.wait)
            met.wait()
        except RuntimeError:  # closed meanwhile, or the machine gives no more threads: then there are as many as there are
            met.abort()

    async def run(self, call: Callable[[Any], _T]) -> _T:
        """Call something with boto3's client, in a thread. If this is cancelled, the thread still ends what it has begun."""
        if self._closed:
            raise NotConnectedError
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._call, call, self._s3)

    def _call(self, call: Callable[[Any], _T], s3: Any) -> _T:
        self._turns.take()
        try:
            return call(s3)
        except Exception as error:
            _let_go(error)
            raise
        finally:
            self._turns.give()

    async def close(self) -> None:
        """Wait for what is under way, and end the threads."""
        self._closed = True
        try:
            ended = asyncio.get_running_loop().run_in_executor(None, self._end)
        except RuntimeError:  # the interpreter ends, and starts no more threads
            self._end()
        else:
            await asyncio.shield(ended)

    def _end(self) -> None:
        self._threads.shutdown(wait=True)
        if self._s3 is not None:
            self._s3.close()


def _let_go(error: BaseException | None) -> None:
    """Have an error keep its lines alone, not the variables beside them.

    boto3 and urllib3 raise errors in circles, also those after which they try again: connections would stay open, and what was
    to be stored in memory, until Python looks for garbage.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


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
    client.meta.events.register("needs-retry.s3", lambda caught_exception, **_: _let_go(caught_exception))
    return client


def _do_not_ask(params: dict[str, Any], **_: Any) -> None:
    """boto3 asks the server whether it may send a body, which is one more round trip, even for the smallest."""
    body = params.get("body")  # bytes, which boto3 has put into a file
    if isinstance(body, BytesIO):
        place = body.tell()
        size = body.seek(0, SEEK_END)  # its buffer would tell as well, and be a copy of a body that is large
        body.seek(place)
        if size < _PATIENT:
            params["headers"].pop("Expect", None)
