"""Files that cannot be used are said to be so, with the remedy; those that can are used well."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from repid_core.abc import Delivery
from repid_core.data import Envelope, Parameters, RoutingKey
from repid_core.errors import BrokerConnectionError, BucketConnectionError, DeliveryLostError, NotConnectedError
from repid_sqlite import SqliteBucketBroker, SqliteMessageBroker, links
from repid_sqlite.errors import explain
from repid_sqlite.schema import VERSION, open_file
from repid_sqlite.settings import SqliteMessageBrokerSettings
from repid_sqlite.transaction import Action, action

SECOND = timedelta(seconds=1)


def message(id_: str, size: int = 10) -> Envelope:
    return Envelope(RoutingKey(id_, "work", "q"), Parameters(timestamp=datetime.now(UTC)), payload=b"x" * size)


@asynccontextmanager
async def opened(path: Path, **settings: Any) -> AsyncIterator[SqliteMessageBroker]:
    broker = SqliteMessageBroker(path, **settings)
    await broker.connect()
    try:
        yield broker
    finally:
        await broker.disconnect()


def sql(path: Path, *statements: str) -> Any:
    db = sqlite3.connect(path, isolation_level=None)
    try:
        rows = None
        for statement in statements:
            rows = db.execute(statement).fetchall()
        return rows
    finally:
        db.close()


async def refused(path: Path) -> str:
    """What both brokers say of a file that they cannot use."""
    said = ""
    for broker, kind in ((SqliteMessageBroker(path), BrokerConnectionError), (SqliteBucketBroker(path), BucketConnectionError)):
        with pytest.raises(kind) as error:
            await broker.connect()
        await broker.disconnect()
        assert error.value.__cause__ is not None
        said = str(error.value)
        assert str(path) in said
    return said


async def test_no_folder(tmp_path: Path) -> None:
    assert "check that its folder is there" in await refused(tmp_path / "none" / "jobs.db")


async def test_no_database(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    path.write_text("This is a letter to my aunt, and longer than the header of a database is.\n" * 20, "utf-8")
    said = path.read_bytes()
    assert "it is no SQLite database: name another file" in await refused(path)
    assert path.read_bytes() == said


async def test_the_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    sql(path, "CREATE TABLE theirs (number)")
    said = path.read_bytes()
    assert "another program" in await refused(path)
    assert path.read_bytes() == said


def test_a_new_file_that_several_open_at_once_is_everybodys(tmp_path: Path) -> None:
    together = threading.Barrier(4)

    def open_at_once(settings: SqliteMessageBrokerSettings) -> None:
        together.wait()
        open_file(settings).close()

    with ThreadPoolExecutor(together.parties) as pool:
        for turn in range(50):
            list(pool.map(open_at_once, together.parties * [SqliteMessageBrokerSettings(str(tmp_path / f"{turn}.db"))]))


async def test_a_newer_schema(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with opened(path):
        pass
    sql(path, f"PRAGMA user_version = {VERSION + 1}")
    assert f"with schema {VERSION + 1}, and this one knows {VERSION}: upgrade repid-sqlite" in await refused(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everything")
async def test_a_file_that_may_not_be_written(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with opened(path):
        pass
    path.chmod(0o444)
    assert "may not write it" in await refused(path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SQLITE_READONLY_DBMOVED", "the right to write the file"),
        ("SQLITE_IOERR_SHMMAP", "network file system"),
        ("SQLITE_CORRUPT_VTAB", ".recover"),
        ("SQLITE_BUSY_SNAPSHOT", "busy_timeout"),
        ("SQLITE_AUTH", "the error of SQLite"),
    ],
)
def test_what_is_said_of_errors(name: str, said: str) -> None:
    error = sqlite3.OperationalError("it failed")
    error.sqlite_errorname = name
    text = explain(Path("jobs.db"), error)
    assert text.startswith("jobs.db cannot be used (it failed): ")
    assert said in text


async def ask(broker: SqliteMessageBroker, statement: str) -> Any:
    """Run a statement in the broker's thread, on its connection."""
    asking: Action[None, Any] = action(lambda tx, _: tx.execute(statement).fetchall(), writes=False)
    return await broker.database.call(asking, None)


async def test_a_full_disk_refuses_what_does_not_fit_and_takes_what_does(tmp_path: Path) -> None:
    async with opened(tmp_path / "jobs.db") as broker:
        await ask(broker, "PRAGMA max_page_count = 60")
        with pytest.raises(BrokerConnectionError, match=r"the disk is full.*let workers drain") as error:
            await fill(broker)
        assert isinstance(error.value.__cause__, sqlite3.Error)
        ready = (await broker.queue_stats("q")).ready or 0
        assert 5 < ready < 60
        large, cancelled = await asyncio.gather(  # one transaction, at first
            broker.enqueue(message("large", 100_000)), broker.cancel("q", "m0"), return_exceptions=True
        )
        assert isinstance(large, BrokerConnectionError)
        assert cancelled is True
        assert (await broker.queue_stats("q")).ready == ready - 1
        await broker.flush_queue("q")
        await broker.enqueue(message("after", 10_000))


async def fill(broker: SqliteMessageBroker) -> None:
    for number in range(100):
        await broker.enqueue(message(f"m{number}", 10_000))


async def test_the_space_of_what_is_gone_is_used_again_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with opened(path, lease=SECOND) as broker:
        most = 0
        for turn in range(3):
            await broker.enqueue_many([message(f"{turn}-{number}", 5_000) for number in range(1000)])
            [[pages]] = sql(path, "PRAGMA page_count")
            most = most or pages
            await broker.flush_queue("q")
        [[now]] = sql(path, "PRAGMA page_count")
        assert now <= 1.1 * most
        while now > most / 2:  # as the lease is renewed, the file shrinks
            await asyncio.sleep(0.1)  # between looks; the test's own limit ends it
            [[now]] = sql(path, "PRAGMA page_count")


async def test_settings_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    for setting, wanted in (("normal", 1), ("full", 2), ("extra", 3)):
        async with opened(path, synchronous=setting) as broker:
            assert await ask(broker, "PRAGMA synchronous") == [(wanted,)]
    assert sql(path, "PRAGMA journal_mode") == [("wal",)]


async def test_prefixes_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with opened(path, prefix="a") as a, opened(path, prefix="b") as b:
        await a.enqueue(message("m"))
        assert (await b.queue_stats("q")).ready == 0
        await b.enqueue(message("m"))
        await b.delete_queue("q")
        assert (await a.queue_stats("q")).ready == 1


async def test_the_queues_are_those_of_the_prefix(tmp_path: Path) -> None:
    for prefix, queues in (("a", ("mail", "bar")), ("ab", ("other",)), ("repid", ("bare",))):
        async with opened(tmp_path / "jobs.db", prefix=prefix) as broker:
            assert await broker.queue_names() == []
            for queue in queues:
                await broker.declare_queue(queue)
            assert await broker.queue_names() == sorted(queues)
            await broker.delete_queue(queues[0])
            assert await broker.queue_names() == sorted(queues[1:])


async def test_a_file_that_was_removed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with opened(path) as broker:
        await broker.enqueue(message("a"))
        path.unlink()
        with pytest.raises(BrokerConnectionError, match="it was removed while it was in use: restart"):
            await broker.enqueue(message("b"))
        path.touch()
        with pytest.raises(BrokerConnectionError, match="another file has taken its place"):
            await broker.enqueue(message("b"))


async def test_without_sockets_consumers_look_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "_addresses", lambda path: [])
    path = tmp_path / "jobs.db"
    poll = timedelta(milliseconds=20)
    async with opened(path, poll=poll) as here, opened(path, poll=poll) as there:
        assert here.limits.wake_up == poll
        consumer = there.consumer("q", None, prefetch=1)
        await consumer.start()
        for number in range(5):
            waiting = asyncio.ensure_future(consumer.receive(1))
            await asyncio.sleep(0.05)
            await here.enqueue(message(f"m{number}"))
            [delivery] = await asyncio.wait_for(waiting, 60)
            await delivery.ack()


async def test_long_paths_have_their_sockets_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100) / ("y" * 100)
    folder.mkdir(parents=True)
    long = timedelta(seconds=300)
    async with opened(folder / "jobs.db", poll=long) as here, opened(folder / "jobs.db", poll=long) as there:
        consumer = there.consumer("q", None, prefetch=1)
        await consumer.start()
        waiting = asyncio.ensure_future(consumer.receive(1))
        await asyncio.sleep(0.05)
        await here.enqueue(message("m"))
        [delivery] = await asyncio.wait_for(waiting, 60)
        await delivery.ack()
        addresses = [Path(address) for [address] in sql(folder / "jobs.db", "SELECT address FROM sessions")]
        assert len(addresses) == 2
        assert all(address.exists() for address in addresses)
    assert not any(address.exists() for address in addresses)


async def test_a_settlement_that_the_file_could_not_take_is_made_up_for(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with opened(path, busy_timeout=timedelta(milliseconds=100)) as broker:
        await broker.enqueue(message("m"))
        consumer = broker.consumer("q", None, prefetch=1)
        await consumer.start()
        [delivery] = await consumer.receive(1)
        lock = sqlite3.connect(path, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        with pytest.raises(BrokerConnectionError, match="holds its write lock"):
            await delivery.ack()
        assert not consumer.healthy
        lock.close()
        while (await broker.queue_stats("q")).in_progress:
            await asyncio.sleep(0.02)
        assert (await broker.queue_stats("q")).ready == 0
        while not consumer.healthy:
            await asyncio.sleep(0.02)


async def test_nobody_is_taken_for_dead_while_nobody_can_write(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    settings: dict[str, Any] = {"busy_timeout": timedelta(milliseconds=100), "lease": 2 * SECOND}
    async with opened(path, **settings) as here, opened(path, **settings) as there:
        await here.enqueue_many([message("a"), message("b")])
        consumers = [broker.consumer("q", None, prefetch=1) for broker in (here, there)]
        held: list[Delivery] = []
        for consumer in consumers:
            await consumer.start()
            held += await consumer.receive(1)
        lock = sqlite3.connect(path, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(2.5)  # longer than the lease
        lock.close()
        while not all(consumer.healthy for consumer in consumers):
            await asyncio.sleep(0.02)
        for delivery in held:
            await delivery.ack()


async def test_a_session_that_is_over_takes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with opened(path, lease=300 * SECOND) as broker:
        consumer = broker.consumer("q", None, prefetch=1)
        await consumer.start()
        waiting = asyncio.ensure_future(consumer.receive(1))
        await broker.ping()
        sql(path, "DELETE FROM sessions")  # as others would; it will not look for a long time
        await broker.enqueue(message("m"))
        [delivery] = await asyncio.wait_for(waiting, 60)
        assert sql(path, "SELECT session FROM sessions, messages WHERE session = holder >> 32") == [(broker.database.session,)]
        await delivery.ack()


async def test_who_lost_the_lease_is_told(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with opened(path, lease=SECOND) as broker:
        await broker.enqueue(message("m"))
        consumer = broker.consumer("q", None, prefetch=1)
        await consumer.start()
        [delivery] = await consumer.receive(1)
        lost = asyncio.Event()
        delivery.on_lost(lost.set)
        sql(path, "DELETE FROM sessions", "UPDATE messages SET holder = NULL")  # as others would
        await asyncio.wait_for(lost.wait(), 60)
        with pytest.raises(DeliveryLostError):
            await delivery.ack()
        [again] = await asyncio.wait_for(consumer.receive(1), 60)  # in the new session
        await again.ack()


async def test_what_is_not_open_says_so(tmp_path: Path) -> None:
    broker, buckets = SqliteMessageBroker(tmp_path / "jobs.db"), SqliteBucketBroker(tmp_path / "jobs.db")
    with pytest.raises(NotConnectedError):
        await broker.enqueue(message("m"))
    with pytest.raises(NotConnectedError):
        await buckets.get_bucket("b")
    assert not (tmp_path / "jobs.db").exists()
