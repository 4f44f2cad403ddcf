"""The conformance suite for bucket brokers."""

from __future__ import annotations

import asyncio
import string
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

from repid_core.abc import BucketBroker
from repid_core.errors import BucketBrokerError, BucketConnectionError, PayloadTooLargeError, ResultTimeoutError
from repid_core.testing.conformance.backend import BackendSuite
from repid_core.testing.conformance.suite import check, hook, promise, same

_SECOND = timedelta(seconds=1)
_SHORT = timedelta(seconds=4)  # a TTL to live through, and to outlive, that a second's stall of a busy machine does not use up
_SAMPLES = 100


class BucketBrokerConformance(BackendSuite[BucketBroker]):
    """Holds a bucket broker to the contract.

    Use it so::

        class TestMyBroker(BucketBrokerConformance):
            @pytest.fixture
            def make_broker(self, server):
                prefix = uuid.uuid4().hex
                return lambda: MyBucketBroker(server.url, prefix=prefix)

    Every call of what the fixture gives makes another client of one namespace, which is fresh for each test. That is all
    there is to write; each of these may be overridden, and unlocks more:

    - `count_stored(broker)`: how many buckets take up storage (B3);
    - `break_connection(broker)` and `restore_connection(broker)`: the network goes and comes back (B8);
    - `address` and `secrets`: what errors must name and must not show;
    - `server`: what the store is, and its version, for the report;
    - `manual_clock()`: for brokers inside the process, a clock that the tests move instead of waiting;
    - `patience`: how long a slow store may take;
    - `deviations = {"test_name": "reason"}`: see `ConformanceSuite`.

    `limits.wake_up` is how long after a store `wait_for` may take to see it: 5 ms where the store pushes, up to a second
    where the broker polls.
    """

    @hook
    async def count_stored(self, broker: BucketBroker) -> int:  # type: ignore[empty-body]
        """How many buckets take up storage, expired ones that are not freed yet included. Unlocks part of B3.

        A store that frees them some time after they expire may wait here until it has.
        """

    async def clean(self) -> None:
        await self.broker.delete_many(sorted(self._ids))

    @property
    def _ids(self) -> set[str]:
        return self.__dict__.setdefault("_used_ids", set())  # type: ignore[no-any-return]

    async def store(self, id_: str, data: bytes, ttl: timedelta | None = None) -> None:
        """Store a bucket, removed after the test."""
        self._ids.add(id_)
        await self.broker.store_bucket(id_, data, ttl)

    async def holds(self, id_: str, data: bytes | None) -> None:
        """Check what a bucket holds, by every client."""
        for broker in (self.broker, await self.client()):
            same(await broker.get_bucket(id_), data, f"get_bucket({id_!r})")

    @promise("B1", "get_bucket is what was stored last, byte for byte, for every client.")
    async def test_get_what_was_stored(self) -> None:
        size = min(self.broker.limits.max_payload or 1 << 20, 1 << 20)
        for number, data in enumerate((b"", b"\x00", bytes(range(256)), b"\r\n\r\n", "grüße".encode(), b"\xff" * size)):
            await self.store(f"b{number}", data)
            await self.holds(f"b{number}", data)

    @promise("B1", "get_bucket is None if there is none, or it was deleted.")
    async def test_get_what_is_not_there(self) -> None:
        await self.holds("never", None)
        await self.store("deleted", b"data")
        await self.broker.delete_bucket("deleted")
        await self.holds("deleted", None)

    @promise("B1", "delete_bucket is idempotent, and deletes that one alone.")
    async def test_delete_is_idempotent(self) -> None:
        await self.store("a", b"1")
        await self.store("ab", b"2")
        for _ in range(2):
            await self.broker.delete_bucket("a")
        await self.holds("ab", b"2")

    @promise("B1", "No bucket is ever returned after its time, by any call; before it, it is.")
    async def test_ttl(self) -> None:
        await self.store("short", b"data", _SHORT)
        await self.wait(_SECOND)
        await self.holds("short", b"data")
        await self.wait(_SHORT - _SECOND)
        await self.holds("short", None)
        same(await self.broker.get_many(["short"]), [None], "get_many, after the bucket's time")
        try:
            await self.within(self.broker.wait_for("short", timedelta(0)), "wait_for")
        except ResultTimeoutError:
            return
        check(ok=False, seen="wait_for returned a bucket after its time")

    @promise("B2", "The last writer wins: its bytes, and its TTL.")
    async def test_last_writer_wins(self) -> None:
        await self.store("b", b"first, and longer", _SECOND)
        await (await self.client()).store_bucket("b", b"second", None)
        await self.holds("b", b"second")
        await self.wait(2 * _SECOND)
        await self.holds("b", b"second")
        await self.store("b", b"third", _SHORT)
        await self.holds("b", b"third")
        await self.wait(_SHORT + self.quiet)
        await self.holds("b", None)

    @promise("B2", "Storing again starts the TTL anew.")
    async def test_storing_again_renews_ttl(self) -> None:
        await self.store("b", b"1", 2 * _SECOND)
        await self.wait(1.5 * _SECOND)
        await self.store("b", b"2", _SHORT)
        await self.wait(_SECOND)
        await self.holds("b", b"2")

    @promise("B2", "store_bucket is all or nothing: writers at the same time leave what one of them wrote.")
    async def test_writers_at_once(self) -> None:
        size = min(self.broker.limits.max_payload or 1 << 18, 1 << 18)
        wanted = [bytes([letter]) * (size - letter) for letter in b"abcdefgh"]
        brokers = [self.broker, await self.client()] * 4
        self._ids.add("b")
        await asyncio.gather(*(broker.store_bucket("b", data, None) for broker, data in zip(brokers, wanted, strict=True)))
        check(await self.broker.get_bucket("b") in wanted, "the bucket holds what nobody wrote")

    @promise("B2", "store_bucket is all or nothing: cancelled, it has stored the new bytes, or left the old.")
    async def test_cancelled_store_is_whole(self) -> None:
        size = min(self.broker.limits.max_payload or 1 << 16, 1 << 16)
        for turns in range(8):
            await self.store("b", b"old")
            await self.cancelled_at(self.broker.store_bucket("b", b"n" * size, None), turns)
            check(await self.broker.get_bucket("b") in (b"old", b"n" * size), "the bucket holds what nobody wrote")

    @promise("B3", "TTL None never expires.")
    async def test_no_ttl_never_expires(self) -> None:
        await self.store("b", b"data")
        await self.wait(timedelta(days=4000) if self._manual else 2 * _SECOND)
        await self.holds("b", b"data")

    @promise("B3", "TTLs from 1 s up work, to years.")
    async def test_ttls_of_all_lengths(self) -> None:
        ttls = [_SECOND, 1.5 * _SECOND, timedelta(hours=1), timedelta(days=1), timedelta(days=365 * 10)]
        for number, ttl in enumerate(ttls):
            began = time.monotonic()
            await self.store(f"b{number}", b"data", ttl)
            found = await self.broker.get_bucket(f"b{number}")
            if self._manual or found is not None or time.monotonic() - began < ttl.total_seconds():
                same(found, b"data", f"get_bucket, after a store for {ttl}")
        await self.wait(2 * _SECOND)
        seen = [data is not None for data in await self.broker.get_many([f"b{n}" for n in range(len(ttls))])]
        same(seen, [False, False, True, True, True], "there after 2 s")

    @promise("B3", "Storage is freed when the TTL has passed, by the store or on writes.", "count_stored")
    async def test_storage_is_freed(self) -> None:
        for number in range(100):
            await self.store(f"b{number}", b"data", _SECOND)
        await self.store("kept", b"data")
        await self.wait(2 * _SECOND)
        for number in range(10):
            await self.store("write", bytes([number]))
        found = await self.count_stored(self.broker)
        self.measured["storage"] = f"{found - 2} of 100 expired buckets left after 10 writes"
        same(found, 2, "buckets that take up storage")

    @promise("B4", "wait_for returns at once if the bucket is there.")
    async def test_wait_for_what_is_there(self) -> None:
        await self.store("b", b"data")
        for timeout in (None, _SECOND, timedelta(0)):
            same(await self.within(self.broker.wait_for("b", timeout), "wait_for"), b"data", "wait_for")

    @promise("B4", "wait_for returns as soon as the bucket is there, within the declared wake_up.")
    async def test_wait_for_is_woken(self) -> None:
        other, spans = await self.client(), []
        limit = self.broker.limits.wake_up

        async def come(id_: str) -> tuple[bytes, float]:
            return await other.wait_for(id_, timedelta(minutes=1)), self._exactly()

        at_once = 1 if limit <= 0.1 * _SECOND else 10  # so that polling takes no minutes
        for first in range(0, _SAMPLES, at_once):
            names = [f"b{number}" for number in range(first, first + at_once)]
            waiting = [self.task(come(name)) for name in names]
            await (self.turns(5) if self._manual else asyncio.sleep(0.005))
            stored = []
            for name in names:
                await self.store(name, b"data")
                stored.append(self._exactly())
            for task, start in zip(waiting, stored, strict=True):
                check(await self.let(task, limit), "wait_for did not see the bucket")
                data, came = await task
                same(data, b"data", "wait_for")
                spans.append(timedelta(seconds=max(0.0, came - start)))
        self.measure("wake_up", spans, limit)

    def _exactly(self) -> float:
        return self.clock.now().timestamp() if self._manual else time.perf_counter()

    @promise("B4", "wait_for raises ResultTimeoutError after `timeout`, and not before.")
    async def test_wait_for_times_out(self) -> None:
        began = time.monotonic()
        waiting = self.task(self.broker.wait_for("never", _SECOND))
        await self.wait(0.7 * _SECOND)
        if self._manual or time.monotonic() - began < _SECOND.total_seconds():
            check(not waiting.done(), "wait_for ended before its timeout")
        check(await self.let(waiting, 0.3 * _SECOND), "wait_for did not end after its timeout")
        same(type(waiting.exception()), ResultTimeoutError, "wait_for raised")

    @promise("B4", "wait_for without a timeout waits; several may wait for one bucket, and one that gives up disturbs none.")
    async def test_many_wait_for_one(self) -> None:
        waiting = [self.task(broker.wait_for("b", None)) for broker in (self.broker, await self.client()) for _ in range(3)]
        await self.turns(5)
        await self.wait(2 * _SECOND)
        waiting.pop(0).cancel()
        check(not any(task.done() for task in waiting), "wait_for ended, with no bucket there")
        await self.store("b", b"data")
        for task in waiting:
            check(await self.let(task, self.broker.limits.wake_up), "wait_for did not see the bucket")
            same(task.result(), b"data", "wait_for")

    @promise("B4", "wait_for sees a bucket that is stored while it begins to wait, or stored by store_many.")
    async def test_wait_for_misses_nothing(self) -> None:
        for turns in range(8):
            self._ids.add(id_ := f"b{turns}")
            waiting = self.task(self.broker.wait_for(id_, None))
            await self.turns(turns)
            if turns % 2:
                await self.broker.store_many([(id_, b"data", None), (f"other-{id_}", b"", _SECOND)])
            else:
                await self.store(id_, b"data")
            check(await self.let(waiting, self.broker.limits.wake_up), f"wait_for missed a store at turn {turns}")

    @promise("B5", "get_many keeps the order of ids, with None for those that are not there, and repeats.")
    async def test_get_many_keeps_order(self) -> None:
        names = [f"b{n}" for n in range(60)]
        for name in names[::2]:
            await self.store(name, name.encode())
        ids = [*reversed(names), names[0], names[1], names[0]]
        wanted = [id_.encode() if id_ in names[::2] else None for id_ in ids]
        same(list(await self.broker.get_many(ids)), wanted, "get_many")
        same(list(await self.broker.get_many([])), [], "get_many of nothing")

    @promise("B5", "store_many stores all, each with its TTL, later ones over earlier ones of one id.")
    async def test_store_many(self) -> None:
        ttl = max(2 * _SECOND, self.patience)
        buckets = [(f"b{n}", str(n).encode(), ttl if n % 2 else None) for n in range(60)]
        self._ids.update(id_ for id_, _, _ in buckets)
        await self.broker.store_many([("b0", b"earlier", _SECOND), *buckets, ("b5", b"later", None)])
        await self.broker.store_many([])
        wanted = {**{id_: data for id_, data, _ in buckets}, "b5": b"later"}
        names = list(wanted)
        same(dict(zip(names, await self.broker.get_many(names), strict=True)), wanted, "stored")
        await self.wait(ttl + self.quiet)
        left = [name for name, data in zip(names, await self.broker.get_many(names), strict=True) if data is not None]
        same(sorted(left), sorted([f"b{n}" for n in range(0, 60, 2)] + ["b5"]), "there after the TTL of half of them")

    @promise("B5", "delete_many deletes all of them, those that are not there too, and no others.")
    async def test_delete_many(self) -> None:
        names = [f"b{n}" for n in range(40)]
        for name in names:
            await self.store(name, b"data")
        await self.broker.delete_many([*names[:30], "never", names[0]])
        await self.broker.delete_many([])
        same(list(await self.broker.get_many(names)), [None] * 30 + [b"data"] * 10, "left")

    @promise("B5", "Many take few round trips: they cost no more than a loop.")
    async def test_many_are_no_slower_than_a_loop(self) -> None:
        names = [f"b{n}" for n in range(100)]
        self._ids.update(names)
        loop = many = float("inf")
        for _ in range(3):  # the best of three: the machine does other things too
            start = time.perf_counter()
            for name in names:
                await self.broker.store_bucket(name, b"data", None)
            middle = time.perf_counter()
            await self.broker.store_many([(name, b"data", None) for name in names])
            loop, many = min(loop, middle - start), min(many, time.perf_counter() - middle)
        self.measured["store_many"] = f"100 buckets in {many * 1000:.1f} ms, by a loop in {loop * 1000:.1f} ms"
        check(many <= 2 * loop + 0.05, self.measured["store_many"])

    @promise("B6", "Ids are 1 to 256 of ASCII letters, digits, '.', '_', ':' and '-': every one is a bucket of its own.")
    async def test_every_legal_id_is_its_own(self) -> None:
        letters = string.ascii_letters + string.digits + "._:-"
        names = ["a", "A", "a.", ".a", "..a", "a..b", "a:b", "a-b", "a_b", "a.b", "a::b", ":", "-", "_", "::..", ".:.", "0", "00",
                 "x" * 256, "x" * 255, letters, "con", "a.json", "None", "--help"]  # fmt: skip
        for name in names:
            await self.store(name, f"data of {name}".encode())
        for name in names:
            same(await self.broker.get_bucket(name), f"data of {name}".encode(), f"get_bucket({name!r})")
        await self.broker.delete_many(names[:-1])
        same(list(await self.broker.get_many(names)), [None] * (len(names) - 1) + [b"data of --help"], "left after delete_many")

    @promise("B8", "A bucket over the declared max_payload raises PayloadTooLargeError, and nothing is stored.")
    async def test_bucket_too_large(self) -> None:
        limit = self.broker.limits.max_payload
        if limit is None:
            self.not_declared("a max_payload")
        try:
            await self.store("b", b"x" * (limit + 1))
        except PayloadTooLargeError as error:
            same((error.size >= limit + 1, error.limit), (True, limit), "size and limit of the error")
        else:
            check(ok=False, seen=f"{limit + 1} bytes were taken, the limit being {limit}")
        await self.holds("b", None)
        await self.store("b", b"x" * limit)
        await self.holds("b", b"x" * limit)

    @promise("B8", "An unreachable store is a BucketConnectionError, with the original as __cause__.", "break_connection",
             "restore_connection")  # fmt: skip
    async def test_unreachable_store(self) -> None:
        await self.break_connection(self.broker)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "get_bucket": lambda: self.broker.get_bucket("b"),
            "store_bucket": lambda: self.store("b", b"data"),
            "delete_bucket": lambda: self.broker.delete_bucket("b"),
        }
        try:
            for name, call in calls.items():
                try:
                    await call()
                except BucketConnectionError as error:
                    check(error.__cause__ is not None, f"{name} raised {error!r}, without a __cause__")
                    self.well_said(error)
                except BucketBrokerError as error:
                    check(ok=False, seen=f"{name} raised {error!r}, which is no BucketConnectionError")
                else:
                    check(ok=False, seen=f"{name} returned, with the store out of reach")
        finally:
            await self.restore_connection(self.broker)
        await self.store("b", b"data")
        await self.holds("b", b"data")
