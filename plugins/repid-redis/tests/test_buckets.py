"""Buckets on Redis: how they are kept, how long, and how who waits for them is told, whatever happens to the connection."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from repid_core.errors import (
    BucketBrokerError,
    BucketConnectionError,
    CorruptBucketError,
    NotConnectedError,
    PayloadTooLargeError,
    ResultTimeoutError,
)
from repid_core.testing.proxy import FaultProxy
from repid_redis import RedisBucketBroker
from servers import Cluster, Sentinels, Server, eventually

SECOND = timedelta(seconds=1)
MILLISECOND = timedelta(milliseconds=1)
SOON = 1.0  # seconds; far less than the pause between two looks at what nobody tells of
Serve = Callable[..., Server]


@pytest.fixture
def server(redis_url: str) -> redis.Redis:
    """To look at what brokers leave there."""
    return redis.Redis.from_url(redis_url)


@pytest.fixture(autouse=True)
async def nothing_is_left_running() -> AsyncIterator[None]:
    yield
    assert not [task for task in asyncio.all_tasks() if "repid" in task.get_name()]


@asynccontextmanager
async def connected(url: str, **settings: Any) -> AsyncIterator[RedisBucketBroker]:
    broker = RedisBucketBroker(url, **settings)
    await broker.connect()
    try:
        yield broker
    finally:
        await broker.disconnect()


@pytest.fixture
async def broker(redis_url: str, prefix: str) -> AsyncIterator[RedisBucketBroker]:
    async with connected(redis_url, prefix=prefix) as broker:
        yield broker


@asynccontextmanager
async def through_proxy(url: str, **settings: Any) -> AsyncIterator[tuple[RedisBucketBroker, FaultProxy]]:
    """A broker whose connections can be cut."""
    parts = urlsplit(url)
    async with (
        FaultProxy(parts.hostname or "", parts.port or 6379) as proxy,
        connected(f"redis://127.0.0.1:{proxy.port}{parts.path}", **settings) as broker,
    ):
        yield broker, proxy
        proxy.accept()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


async def waiting_for(broker: RedisBucketBroker, *ids: str, timeout: timedelta | None = 30 * SECOND) -> list[asyncio.Task[bytes]]:
    """Tasks that wait, of which the server knows."""
    tasks = [asyncio.create_task(broker.wait_for(id_, timeout)) for id_ in ids]
    await until(lambda: len(broker._watch._waits) == len(ids))
    await until(lambda: all(line._up and not line._expected for line in broker._watch._lines.values()))
    return tasks


# -- how they are kept -------------------------------------------------------------------------------------------------------


async def test_one_id_is_one_key(redis_url: str, prefix: str, server: redis.Redis) -> None:
    """So what one job has stored as its result, the next one finds as its arguments."""
    async with connected(redis_url, prefix=prefix) as results, connected(redis_url, prefix=prefix) as arguments:
        await results.store_bucket("a:b.c", b"data", None)
        assert await arguments.get_bucket("a:b.c") == b"data"
        assert list(server.scan_iter(f"{prefix}:*")) == [f"{prefix}:bucket:a:b.c".encode()]
        await arguments.delete_bucket("a:b.c")
        assert await results.get_bucket("a:b.c") is None
        assert list(server.scan_iter(f"{prefix}:*")) == []


async def test_prefixes_and_databases_are_apart(redis_url: str, prefix: str) -> None:
    async with (
        connected(redis_url, prefix=prefix) as one,
        connected(redis_url, prefix=f"{prefix}:other") as two,
        connected(redis_url, prefix=prefix, db=9) as three,
    ):
        await one.store_bucket("b", b"data", SECOND)
        assert await two.get_bucket("b") is None
        assert await three.get_bucket("b") is None


async def test_expiry_is_to_the_millisecond(broker: RedisBucketBroker, prefix: str, server: redis.Redis) -> None:
    key = f"{prefix}:bucket:b"
    await broker.store_bucket("b", b"data", timedelta(milliseconds=54_321))
    assert 50_000 < server.pttl(key) <= 54_321
    await broker.store_many([("b", b"data", timedelta(days=365, milliseconds=7))])
    assert 0 <= 365 * 86_400_000 + 7 - server.pttl(key) < 5000
    await broker.store_bucket("b", b"data", None)
    assert server.pttl(key) == -1
    await broker.store_bucket("b", b"data", timedelta(microseconds=10))  # the server knows no less than a millisecond
    await asyncio.sleep(0.002)
    assert await broker.get_bucket("b") is None


async def test_no_bucket_is_seen_after_its_time(broker: RedisBucketBroker) -> None:
    start = time.monotonic()
    await broker.store_bucket("b", b"data", 250 * MILLISECOND)
    stored = time.monotonic()
    seen = asked = start
    while await broker.get_bucket("b") is not None:
        seen, asked = asked, time.monotonic()
        assert seen - stored < SOON
    assert time.monotonic() - start >= 0.25
    assert seen - stored < 0.26


# -- compression -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 200_000])  # the second is compressed by a thread
async def test_what_gets_smaller_is_compressed(redis_url: str, prefix: str, server: redis.Redis, size: int) -> None:
    key, text, noise = f"{prefix}:bucket:b", b"a text, and again " * (size // 18 + 1), os.urandom(size)
    async with (
        connected(redis_url, prefix=prefix, compress_from=1000) as broker,
        connected(redis_url, prefix=prefix, compress_from=None) as plain,
    ):
        for data, small in ((text, True), (noise, False), (text[:999], False)):
            await broker.store_bucket("b", data, None)
            assert server.strlen(key) < len(data) / 4 if small else server.strlen(key) == len(data) + 1
            assert await broker.get_bucket("b") == await plain.get_bucket("b") == data
            assert await plain.wait_for("b", SECOND) == data
        await plain.store_bucket("b", text, None)
        assert server.strlen(key) == len(text) + 1
        assert await broker.get_many(["b"]) == [text]


async def test_a_bucket_that_unpacks_to_too_much(redis_url: str, prefix: str, server: redis.Redis) -> None:
    """Nobody can fill the memory of a reader with a small bucket."""
    async with connected(redis_url, prefix=prefix, max_payload=10_000) as broker:
        server.set(f"{prefix}:bucket:fits", b"\1" + zlib.compress(bytes(10_000)))
        assert await broker.get_bucket("fits") == bytes(10_000)
        server.set(f"{prefix}:bucket:bomb", b"\1" + zlib.compress(bytes(100_000_000)))
        tracemalloc.start()
        with pytest.raises(BucketBrokerError, match=r"'bomb' .* unpacks to more than max_payload, 10,000 bytes: raise it"):
            await broker.get_bucket("bomb")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1_000_000


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"", "was not written by repid-redis: delete it, or give another prefix"),
        (b"foreign", "was not written by repid-redis"),
        (b"\1foreign", "is damaged"),
        (b"\1" + zlib.compress(os.urandom(5000))[:-100], "is damaged: its end is missing"),
        (b"\1", "is damaged: its end is missing"),
    ],
)
async def test_what_cannot_be_read(broker: RedisBucketBroker, prefix: str, server: redis.Redis, value: bytes, said: str) -> None:
    server.set(f"{prefix}:bucket:b", value)
    for read in (broker.get_bucket("b"), broker.get_many(["b"]), broker.wait_for("b", SECOND)):
        with pytest.raises(CorruptBucketError, match="bucket 'b' in Redis at ") as caught:
            await read
        assert said in str(caught.value)


async def test_a_key_of_another_kind(broker: RedisBucketBroker, prefix: str, server: redis.Redis) -> None:
    server.rpush(f"{prefix}:bucket:b", "x")
    with pytest.raises(BucketBrokerError, match="is not repid's: give another `prefix`"):
        await broker.get_bucket("b")
    await broker.store_bucket("b", b"data", None)
    assert await broker.get_bucket("b") == b"data"


# -- size --------------------------------------------------------------------------------------------------------------------


async def test_too_large(redis_url: str, prefix: str, server: redis.Redis) -> None:
    async with connected(redis_url, prefix=prefix, max_payload=1000) as broker:
        with pytest.raises(PayloadTooLargeError, match="give the bucket broker a larger max_payload") as caught:
            await broker.store_bucket("b", bytes(1001), None)
        assert (caught.value.size, caught.value.limit) == (1001, 1000)
        with pytest.raises(PayloadTooLargeError):
            await broker.store_many([("a", b"", None), ("b", bytes(1001), None)])
        assert list(server.scan_iter(f"{prefix}:*")) == [], "something was stored before all sizes were looked at"


async def test_many_that_are_large(broker: RedisBucketBroker) -> None:
    """Ten times what may be on its way at once, and two of the largest."""
    half = os.urandom(1 << 22)
    ids = [f"b{number}" for number in range(20)]
    await broker.store_many([(id_, half + id_.encode(), 60 * SECOND) for id_ in ids])
    assert await broker.get_many(ids) == [half + id_.encode() for id_ in ids]
    await broker.delete_many(ids)
    full = half * 4
    await asyncio.gather(*(broker.store_bucket(id_, full, 60 * SECOND) for id_ in ids[:2]))
    assert await broker.wait_for("b0", SECOND) == await broker.get_bucket("b1") == full
    await broker.delete_many(ids)


# -- waiting -----------------------------------------------------------------------------------------------------------------


async def test_waiting_costs_the_server_next_to_nothing(serve: Serve) -> None:
    """A thousand that wait share one connection, and what they ask for in a second is no more than a few commands."""
    server = serve()
    async with connected(server.url) as broker:
        ids = [f"b{number}" for number in range(1000)]
        with server.client() as client:
            others = client.info("clients")["connected_clients"]
            tasks = await waiting_for(broker, *ids)
            assert client.info("clients")["connected_clients"] == others + 1
            before = client.info("stats")["total_commands_processed"]
            await asyncio.sleep(1)  # what is counted is what waiting costs in this time
            assert client.info("stats")["total_commands_processed"] - before <= 5
        async with connected(server.url) as other:
            await other.store_many([(id_, id_.encode(), 60 * SECOND) for id_ in ids])
            async with asyncio.timeout(SOON):
                assert await asyncio.gather(*tasks) == [id_.encode() for id_ in ids]
        assert not broker._watch._waits


async def test_many_wait_for_one(broker: RedisBucketBroker) -> None:
    tasks = [asyncio.create_task(broker.wait_for("b", 30 * SECOND)) for _ in range(100)]
    await until(lambda: broker._watch._waits)
    for task in tasks[::2]:
        task.cancel()
    await broker.store_bucket("b", b"data", 60 * SECOND)
    async with asyncio.timeout(SOON):
        assert await asyncio.gather(*tasks[1::2]) == [b"data"] * 50
    assert not broker._watch._waits


async def test_nothing_is_kept_of_those_who_give_up(broker: RedisBucketBroker) -> None:
    async def give_up(number: int) -> None:
        if number % 2:
            with pytest.raises(ResultTimeoutError):
                await broker.wait_for(f"b{number}", 20 * MILLISECOND)
        else:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(broker.wait_for(f"b{number}", None), 0.02)

    for _ in range(3):
        await asyncio.gather(*(give_up(number) for number in range(200)))
        assert not broker._watch._waits
        assert not any(line.keys for line in broker._watch._lines.values())


async def test_a_deleted_bucket_is_waited_for(broker: RedisBucketBroker) -> None:
    """What is there and goes, or comes and goes, ends no wait; what comes then does."""
    await broker.store_bucket("b", b"old", None)
    await broker.delete_bucket("b")
    [task] = await waiting_for(broker, "b")
    for _ in range(10):
        await broker.delete_bucket("b")
    await asyncio.sleep(0.05)
    assert not task.done()
    await broker.store_bucket("b", b"new", 60 * SECOND)
    async with asyncio.timeout(SOON):
        assert await task == b"new"


async def test_a_flushed_database_ends_no_wait(serve: Serve) -> None:
    server = serve()
    async with connected(server.url) as broker:
        tasks = await waiting_for(broker, "a", "b")
        with server.client() as client:
            client.flushall()
            await asyncio.sleep(0.1)  # nothing is to happen
            assert not any(task.done() for task in tasks)
        await broker.store_many([("a", b"1", None), ("b", b"2", None)])
        async with asyncio.timeout(SOON):
            assert await asyncio.gather(*tasks) == [b"1", b"2"]


async def test_connecting_twice_at_once_is_connecting_once(serve: Serve) -> None:
    server = serve()
    broker = RedisBucketBroker(server.url)
    await asyncio.gather(broker.connect(), broker.connect(), broker.connect())
    try:
        with server.client() as client:
            await until(lambda: client.info("clients")["connected_clients"] == 2)  # the broker's, and this one
    finally:
        await broker.disconnect()


async def test_disconnecting_ends_waits(redis_url: str, prefix: str) -> None:
    async with connected(redis_url, prefix=prefix) as broker:
        tasks = await waiting_for(broker, "a", "b", timeout=None)
        await broker.disconnect()
        async with asyncio.timeout(SOON):
            for error in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(error, NotConnectedError)
        await broker.connect()
        await broker.store_bucket("a", b"data", SECOND)
        assert await broker.wait_for("a", SECOND) == b"data"


async def test_a_server_that_remembers_too_little(serve: Serve) -> None:
    """It forgets who waits, and says so: they come to no harm, and it is not asked over and over."""
    server = serve(tracking_table_max_keys="10")
    async with connected(server.url) as broker:
        ids = [f"b{number}" for number in range(100)]
        tasks = [asyncio.create_task(broker.wait_for(id_, 60 * SECOND)) for id_ in ids]
        await asyncio.sleep(3)  # until all wait, and the server has forgotten most
        with server.client() as client:
            before = client.info("stats")["total_commands_processed"]
            await asyncio.sleep(1)  # what is counted is what waiting costs in this time
            assert client.info("stats")["total_commands_processed"] - before < 1000
        await broker.store_many([(id_, id_.encode(), None) for id_ in ids])
        async with asyncio.timeout(8):
            assert await asyncio.gather(*tasks) == [id_.encode() for id_ in ids]


async def test_what_nobody_tells_of_is_found(broker: RedisBucketBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a proxy, or a server in trouble, loses the word."""
    ids = [f"b{number}" for number in range(20)]
    tasks = await waiting_for(broker, *ids)
    monkeypatch.setattr(broker._watch, "changed", lambda key: None)
    await broker.store_many([(id_, b"data", 60 * SECOND) for id_ in ids])
    async with asyncio.timeout(6):
        assert await asyncio.gather(*tasks) == [b"data"] * 20


async def test_who_may_not_be_told_polls(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = serve()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "bob", "on", ">pw", "~*", "+@all", "-client|tracking")
    async with connected(f"redis://bob:pw@127.0.0.1:{server.port}", notify=True) as broker:
        with caplog.at_level(logging.WARNING):
            tasks = [asyncio.create_task(broker.wait_for(id_, 10 * SECOND)) for id_ in ("a", "b")]
            await asyncio.sleep(0.2)  # so that they wait before the buckets come
            await broker.store_many([("a", b"1", None), ("b", b"2", None)])
            async with asyncio.timeout(3):
                assert await asyncio.gather(*tasks) == [b"1", b"2"]
            assert await broker.wait_for("a", SECOND) == b"1"
            with pytest.raises(ResultTimeoutError):
                await broker.wait_for("c", 300 * MILLISECOND)
        [record] = [record for record in caplog.records if "polled for" in record.message]
        assert "client|tracking" in record.message


# -- when the connection goes ------------------------------------------------------------------------------------------------


async def test_waits_survive_cuts(redis_url: str, prefix: str) -> None:
    """What is stored while the connection is away is found once it is back, without a look by hand."""
    async with connected(redis_url, prefix=prefix) as other, through_proxy(redis_url, prefix=prefix) as (broker, proxy):
        for number in range(5):
            early, late = f"early{number}", f"late{number}"
            tasks = await waiting_for(broker, early, late)
            proxy.refuse()
            await other.store_bucket(early, b"1", 60 * SECOND)
            await asyncio.sleep(0.02)
            proxy.accept()
            async with asyncio.timeout(SOON):
                assert await tasks[0] == b"1"
            await other.store_bucket(late, b"2", 60 * SECOND)
            async with asyncio.timeout(SOON):
                assert await tasks[1] == b"2"
            assert not broker._watch._waits


async def test_waits_survive_a_silent_connection(redis_url: str, prefix: str) -> None:
    """Half-open: nothing says that it is gone, but that no reply comes."""
    settings = {"reply_deadline": SECOND, "connect_timeout": SECOND}
    async with (
        connected(redis_url, prefix=prefix) as other,
        through_proxy(redis_url, prefix=prefix, **settings) as (broker, proxy),
    ):
        [task] = await waiting_for(broker, "b")
        proxy.stall()
        await other.store_bucket("b", b"data", 60 * SECOND)
        await until(lambda: not any(line._up for line in broker._watch._lines.values()))
        assert not task.done()
        proxy.accept()
        async with asyncio.timeout(5):
            assert await task == b"data"


async def test_a_wait_that_ends_while_the_server_is_away(redis_url: str, prefix: str) -> None:
    """It says that the server is away: that there is no bucket is not known."""
    async with through_proxy(redis_url, prefix=prefix, connect_timeout=SECOND) as (broker, proxy):
        tasks = await waiting_for(broker, "a", timeout=600 * MILLISECOND)
        proxy.refuse()
        with pytest.raises(BucketConnectionError, match=f"Redis at 127.0.0.1:{proxy.port}: ") as caught:
            await tasks[0]
        assert caught.value.__cause__ is not None
        start = time.monotonic()
        with pytest.raises(BucketConnectionError):
            await broker.wait_for("never", 300 * MILLISECOND)
        assert time.monotonic() - start < SOON
        proxy.accept()
        with pytest.raises(ResultTimeoutError):
            await broker.wait_for("never", 3 * SECOND)


async def test_waits_while_the_server_is_away_leave_nothing_behind(redis_url: str, prefix: str) -> None:
    async with through_proxy(redis_url, prefix=prefix) as (broker, proxy):
        tasks = await waiting_for(broker, "b")
        proxy.refuse()
        await until(lambda: not any(line._up for line in broker._watch._lines.values()))
        for number in range(200):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(broker.wait_for(f"never{number}", None), 0.001)
        assert len(broker._watch._waits) == 1
        assert all(len(line._to_ask) + len(line._to_read) <= 1 for line in broker._watch._lines.values())
        proxy.accept()
        await broker.store_bucket("b", b"data", 60 * SECOND)
        assert await tasks[0] == b"data"


async def test_waits_that_begin_as_the_connection_comes_back(redis_url: str, prefix: str) -> None:
    """One begins in every turn of the loop: none of them is lost, or sees what is left of the old connection."""
    async with through_proxy(redis_url, prefix=prefix) as (broker, proxy):
        tasks = await waiting_for(broker, "first")
        [line] = broker._watch._lines.values()
        proxy.cut()
        await until(lambda: not line._up)
        ids = ["first"]
        async with asyncio.timeout(10):
            while not line._up or len(ids) < 10:
                ids.append(f"b{len(ids)}")
                tasks.append(asyncio.create_task(broker.wait_for(ids[-1], 30 * SECOND)))
                await asyncio.sleep(0)
        await broker.store_many([(id_, id_.encode(), 60 * SECOND) for id_ in ids])
        async with asyncio.timeout(10):
            assert await asyncio.gather(*tasks) == [id_.encode() for id_ in ids]


async def test_a_store_whose_reply_is_lost(redis_url: str, prefix: str) -> None:
    """It is sent again: the caller does not notice."""
    async with through_proxy(redis_url, prefix=prefix) as (broker, proxy):
        proxy.swallow_replies(b"SET")
        await broker.store_bucket("b", b"data", 60 * SECOND)
        assert proxy.swallowed == 1
        assert await broker.get_bucket("b") == b"data"
        proxy.swallow_replies(b"MGET")
        assert await broker.get_many(["b", "c"]) == [b"data", None]
        assert proxy.swallowed == 2


@pytest.mark.faults
async def test_waits_survive_the_server(serve: Serve) -> None:
    """It is killed and started again, without its data."""
    server = serve()
    async with connected(server.url) as broker:
        tasks = await waiting_for(broker, "a", "b")
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(0.3)  # an outage, in which attempts to connect fail
        await asyncio.to_thread(server.restart)
        await broker.store_many([("a", b"1", None), ("b", b"2", None)])
        async with asyncio.timeout(5):
            assert await asyncio.gather(*tasks) == [b"1", b"2"]


@pytest.mark.faults
async def test_a_fail_over(sentinels: Sentinels) -> None:
    """The primary is killed: what the replica has stays, and who waits is told by the new primary."""
    async with connected(sentinels.url) as broker, connected(sentinels.url) as other:
        await broker.store_many([(f"b{number}", str(number).encode(), None) for number in range(100)])
        tasks = await waiting_for(broker, "early", "late")
        with sentinels.primary.client() as client:
            assert client.wait(1, 5000) == 1
        sentinels.primary.kill()
        async with asyncio.timeout(30):
            await _store_whatever_happens(other, "early")
            assert await tasks[0] == b"early"
            while not any(line._up for line in broker._watch._lines.values()):
                await asyncio.sleep(0.01)
        await other.store_bucket("late", b"2", None)
        async with asyncio.timeout(SOON):
            assert await tasks[1] == b"2"
        assert await broker.get_many([f"b{number}" for number in range(100)]) == [str(number).encode() for number in range(100)]
        with sentinels.replica.client() as client:
            assert client.exists("repid:bucket:early", "repid:bucket:late") == 2


async def _store_whatever_happens(broker: RedisBucketBroker, id_: str) -> None:
    while True:
        try:
            await broker.store_bucket(id_, id_.encode(), None)
        except BucketConnectionError:
            continue
        return


@pytest.mark.faults
async def test_a_primary_that_steps_down(sentinels: Sentinels) -> None:
    """It lives on as a replica: nobody stays with it."""
    async with connected(sentinels.url) as broker, connected(sentinels.url) as other:
        tasks = await waiting_for(broker, "b")
        with sentinels.sentinels[0].client() as client:
            client.execute_command("SENTINEL", "FAILOVER", sentinels.name)
        with sentinels.primary.client() as client:
            await asyncio.to_thread(eventually, lambda: client.role()[0] in (b"slave", "slave"), "it does not step down")
        await _store_whatever_happens(other, "b")
        async with asyncio.timeout(8):
            assert await tasks[0] == b"b"


async def test_waits_in_a_cluster(cluster: Cluster, prefix: str) -> None:
    """Each node tells of its own; one connection to each will do."""
    async with connected(cluster.url, prefix=prefix) as broker, connected(cluster.url, prefix=prefix) as other:
        ids = [f"b{number}" for number in range(200)]
        tasks = await waiting_for(broker, *ids)
        assert len(broker._watch._lines) == 3
        await other.store_many([(id_, id_.encode(), 60 * SECOND) for id_ in ids])
        async with asyncio.timeout(SOON):
            assert await asyncio.gather(*tasks) == [id_.encode() for id_ in ids]
        assert await other.get_many([*ids, "never"]) == [*(id_.encode() for id_ in ids), None]
        await other.delete_many(ids)
        assert await broker.get_many(ids) == [None] * 200


@pytest.mark.faults
async def test_a_bucket_that_moves_to_another_node(cluster: Cluster, prefix: str) -> None:
    """It can be read and written all the while, and who waits for it is told."""
    key = f"{prefix}:bucket:b"
    clients: list[Any] = [node.client() for node in cluster.nodes]
    ids = [client.execute_command("CLUSTER", "MYID") for client in clients]
    slot = clients[0].execute_command("CLUSTER", "KEYSLOT", key)
    source = next(number for number in range(3) if slot < 16384 * (number + 1) // 3)
    target = (source + 1) % 3
    async with connected(cluster.url, prefix=prefix) as broker, connected(cluster.url, prefix=prefix) as other:
        tasks = await waiting_for(broker, "b")
        try:
            clients[target].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
            clients[source].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
            assert await other.get_bucket("b") is None
            await other.store_bucket("b", b"1", 60 * SECOND)  # on its way, it is at its new node already
            assert clients[source].execute_command("CLUSTER", "COUNTKEYSINSLOT", slot) == 0
            assert await other.get_bucket("b") == b"1"
            async with asyncio.timeout(8):
                assert await tasks[0] == b"1"
            await other.delete_bucket("b")
            tasks = await waiting_for(broker, "b")
            line = broker._watch._waits[key].line
            for client in clients:
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
            await until(lambda: broker._watch._waits[key].line not in {None, line})  # it asks the new node by itself
            await asyncio.sleep(0.2)  # so that it is told of by the new node
            await other.store_bucket("b", b"2", 60 * SECOND)
            async with asyncio.timeout(SOON):
                assert await tasks[0] == b"2"
            assert await broker.get_bucket("b") == b"2"
            await other.delete_bucket("b")
        finally:
            for client in clients:
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[source])
                client.close()
