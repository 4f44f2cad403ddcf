"""boto3's client, made and used in threads of its own: it blocks, so no call of it may be made on the event loop."""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from io import SEEK_END, BytesIO
from typing import Any, Final, TypeVar

from repid_core.errors import NotConnectedError
from repid_s3.interpreter import switching
from repid_s3.settings import S3BucketBrokerSettings

_T = TypeVar("_T")

_PATIENT: Final = 1 << 20  # bytes from which on the server is asked before the body is sent
_FEW: Final = 3  # requests at once that keep both sides busy where the server answers at once
_LONG: Final = 0.02  # seconds from which on a request is not counted, since it waits for the server or for its large body
_RECENT: Final = 32  # requests whose times tell how far the server is


class _Turns:
    """Lets one thread at a time prepare a request or read a reply, and says how many threads are of use.

    boto3 computes about a millisecond for each request. A thread that computes holds Python's lock for `switch_interval` before
    it passes it on, and the event loop asks for it twice until a task has its turn; with dozens of threads it would wait dozens
    of times that.
    But more threads than keep one processor busy, while some wait for the server, bring nothing (Little's law): those are few
    where the server is near, and all where it is far.

    Args:
        most: The most threads.

    Attributes:
        limit: How many threads are of use.
        far: Seconds from which on a request is taken to wait for a server in trouble, or for its large body.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.limit, self.far = min(most, _FEW), _LONG
        self._computes = threading.Lock()
        self._waits: deque[float] = deque(maxlen=_RECENT)  # seconds that the server took
        self._cost = 0.001  # seconds that a request computes
        self._mine = threading.local()

    def compute(self, call: Callable[[Any], _T], s3: Any) -> _T:
        """Call something that begins with the preparation of a request."""
        computed = time.thread_time()
        self.take()
        try:
            return call(s3)
        finally:
            self.give()
            self._mine.sent = None
            self._cost += (time.thread_time() - computed - self._cost) / _RECENT

    def take(self, **_: Any) -> None:
        """Wait for a turn, unless this thread has one. As a handler of boto3's events: with a reply that is to be parsed."""
        mine = self._mine
        if (sent := getattr(mine, "sent", None)) is not None:
            mine.sent = None
            self._waits.append(time.monotonic() - sent)
            least = min(self._waits)  # all others have waited for this process as well
            self.limit, self.far = min(self._most, _FEW + int(least / self._cost)), max(_LONG, 2 * least)
        if not getattr(mine, "held", False):
            self._computes.acquire()
            mine.held = True

    def give(self, **_: Any) -> None:
        """What a thread has taken; nothing if it has none. As a handler of boto3's events: boto3 may sleep."""
        if getattr(self._mine, "held", False):
            self._mine.held = False
            self._computes.release()

    def send(self, **_: Any) -> None:
        """As a handler of boto3's events: the request is about to be sent."""
        self._mine.sent = time.monotonic()
        self.give()


class Client:
    """One client of boto3, and as many threads as there may be requests at once.

    Args:
        settings: Of the broker.
        session: A `boto3.Session`; None for a new one.
    """

    def __init__(self, settings: S3BucketBrokerSettings, session: Any = None) -> None:
        self._settings, self._session = settings, session
        self._threads = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="repid s3")
        self._turns = _Turns(settings.concurrency)
        self._calls: deque[tuple[Future[Any], Callable[[Any], Any]]] = deque()  # that no thread has begun with
        self._busy: dict[object, float] = {}  # threads that make calls, and since when the present one
        self._lock = threading.Lock()  # of the two above, together
        self._look: asyncio.TimerHandle | None = None  # at what waits, if there is anything
        self._s3: Any = None
        self._closed = False
        self._quickened = ExitStack()

    async def open(self) -> None:
        """Make boto3's client, and start the threads. Raises what boto3 does of a configuration that is not valid."""
        if (interval := self._settings.switch_interval) is not None:
            self._quickened.enter_context(switching.at_least_every(interval.total_seconds()))
        self._s3 = await self.run(lambda _: make(self._settings, self._session))
        events = self._s3.meta.events
        events.register_last("before-send.s3", self._turns.send)
        events.register_first("before-parse.s3", self._turns.take)
        events.register_last("needs-retry.s3", self._turns.give)  # boto3 may sleep after that
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
        future: Future[_T] = Future()
        with self._lock:
            self._calls.append((future, call))
            self._engage()
        return await asyncio.wrap_future(future)

    def _engage(self) -> None:
        """Have more threads make the calls that wait, as many as are of use; and look again later if there are more calls."""
        engaged = 0
        while len(self._busy) < self._settings.concurrency and engaged < len(self._calls) and not self._are_enough():
            me = object()
            self._busy[me] = time.monotonic()
            self._threads.submit(self._work, me)
            engaged += 1
        if self._look is None and engaged < len(self._calls):
            self._look = asyncio.get_running_loop().call_later(_LONG, self._engage_more)

    def _engage_more(self) -> None:
        self._look = None
        with self._lock:
            if not self._closed:
                self._engage()

    def _are_enough(self, me: object = None) -> bool:
        """Whether the threads but for one are all that are of use; those that have been at a call for long only wait."""
        if len(self._busy) < self._turns.limit:
            return False
        before = time.monotonic() - self._turns.far
        return sum(since > before for thread, since in self._busy.items() if thread is not me) >= self._turns.limit

    def _work(self, me: object) -> None:
        """Make calls until there are none, or others are enough."""
        while True:
            with self._lock:
                if not self._calls or self._are_enough(me):
                    del self._busy[me]
                    return
                self._busy[me] = time.monotonic()
                call = self._calls.popleft()
            self._make(*call)
            del call  # it may have a large body

    def _make(self, future: Future[Any], call: Callable[[Any], Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = self._turns.compute(call, self._s3)
        except BaseException as error:  # noqa: BLE001 — it is for who has called
            _let_go(error)
            future.set_exception(error)
        else:
            future.set_result(result)

    async def close(self) -> None:
        """Wait for what is under way, and end the threads."""
        self._closed = True
        if self._look is not None:
            self._look.cancel()
        with self._quickened:
            await self._end_threads()

    async def _end_threads(self) -> None:
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
