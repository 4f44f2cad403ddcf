"""The pages that explain: their pictures hold together, and their names, limits and claims are those of code and live servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import sqlite3
import stat
import zlib
from collections.abc import AsyncIterator, Collection, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest

import repid_core
from repid_core import (
    Connection,
    DeathReason,
    InMemoryBucketBroker,
    InMemoryMessageBroker,
    Job,
    Limits,
    MessageBroker,
    MessageCategory,
    Queue,
    Router,
    Worker,
)
from repid_core.codec import encode_envelope
from repid_core.data import Browsed, Death, Envelope, Parameters, Recurrence, RoutingKey
from repid_core.errors import BucketBrokerError, SettingsError
from repid_core.health import HealthCheckServer, HealthCheckServerSettings
from repid_core.settings import duration, size
from repid_core.worker import _Shift
from tests.integration import test_backends_by_name as servers
from tests.integration.test_docs import blocks
from tests.integration.test_docs_facts import tables

pytestmark = pytest.mark.examples

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "explanation"
router = Router()
ran: list[str] = []


@router.actor(queue="mail")
async def greet(name: str) -> str:
    ran.append(name)
    return f"Hello {name}"


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


def now() -> Any:
    return InMemoryMessageBroker().clock.now()


def envelope(id_: str = "one", payload: bytes = b'{"name": "Alex"}', **changes: Any) -> Envelope:
    return Envelope(RoutingKey(id_, "greet", "mail"), Parameters(now()), payload, **changes)


# -- pictures ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_state_machines_have_no_loose_ends(page: Path) -> None:
    for block in blocks(page):
        if block.language != "mermaid" or not block.code.startswith("stateDiagram-v2"):
            continue
        named = re.findall(r"(?m)^ +(\w+): ", block.code)
        arrows = re.findall(r"(?m)^ +(\S+) --> ([^\s:]+)(: .+)?$", block.code)
        assert len(arrows) + len(named) == block.code.count("\n") - 1, f"{block}: a line is neither a state nor an arrow"
        sources, targets = {source for source, _, _ in arrows}, {target for _, target, _ in arrows}
        assert sources | targets == {*named, "[*]"}, str(block)
        assert set(named) <= targets, f"{block}: nothing leads to {set(named) - targets}"


# -- limits --------------------------------------------------------------------------------------------------------------


def message_brokers(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"memory": InMemoryMessageBroker()}
    for name, package, cls, args in (
        ("redis", "repid_redis", "RedisMessageBroker", ()),
        ("rabbitmq", "repid_rabbitmq", "RabbitMessageBroker", ()),
        ("sqlite", "repid_sqlite", "SqliteMessageBroker", (folder / "jobs.db",)),
    ):
        found[name] = getattr(pytest.importorskip(package), cls)(*args)
    return found


def bucket_brokers(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"memory": InMemoryBucketBroker()}
    for name, package, cls, args in (
        ("redis", "repid_redis", "RedisBucketBroker", ()),
        ("sqlite", "repid_sqlite", "SqliteBucketBroker", (folder / "jobs.db",)),
        ("s3", "repid_s3", "S3BucketBroker", ("s3://my-bucket/my-app/",)),
    ):
        found[name] = getattr(pytest.importorskip(package), cls)(*args)
    return found


def meant(text: str) -> Any:
    """What a cell of a table says: a number, a duration, a size, or None."""
    if text == "none" or text.isdigit():
        return None if text == "none" else int(text)
    return size(text) if text.endswith("B") else duration(text)


@pytest.mark.parametrize(("number", "brokers"), [(0, message_brokers), (1, bucket_brokers)])
def test_the_limits_are_those_that_the_backends_declare(number: int, brokers: Any, tmp_path: Path) -> None:
    table, made = tables("explanation/limits.md")[number], brokers(tmp_path)
    wanted = [field.name for field in attrs.fields(Limits)] if number == 0 else ["wake_up", "max_payload"]
    assert [row[0] for row in table] == wanted
    head = re.findall(r"(?m)^\| limit \| (.*) \|$", (PAGES / "limits.md").read_text("utf-8"))[number].split(" | ")
    assert head == list(made)
    for name, *cells in table:
        assert [meant(cell) for cell in cells] == [getattr(broker.limits, name) for broker in made.values()], name


def test_leases_and_deaths_are_as_short_as_the_page_says(tmp_path: Path) -> None:
    rows = {row[0]: row[1:] for row in tables("explanation/limits.md")[2]}
    for (name, broker), least, lease in zip(
        message_brokers(tmp_path).items(), rows["least max_deliveries"], rows["shortest lease"], strict=True
    ):
        args = () if name in {"memory", "redis", "rabbitmq"} else (tmp_path / "jobs.db",)
        setting = "heartbeat" if name == "rabbitmq" else "lease"
        shortest = timedelta(milliseconds=1) if lease == "any" else duration(lease)
        assert type(broker)(*args, max_deliveries=int(least), **{setting: shortest})
        with pytest.raises(ValueError, match="max_deliveries"):
            type(broker)(*args, max_deliveries=int(least) - 1)
        with pytest.raises(ValueError, match=setting):
            type(broker)(*args, **{setting: shortest - timedelta(milliseconds=1)})


def test_counts_are_those_of_the_settings() -> None:
    package = pytest.importorskip("repid_redis")
    counts = {row[0]: row[1:] for row in tables("explanation/limits.md")[6]}
    most, dead = counts["messages in one call to Redis, merge_batch"], counts["dead messages of a queue"]
    settings = package.RedisMessageBroker().settings
    assert int(most[0]) == settings.merge_batch
    assert package.RedisMessageBroker(merge_batch=int(most[1].replace(",", "")))
    assert f"{settings.dead_max_count:,}" in dead[0]
    assert f"{Worker().tasks_limit:,}" == counts["jobs at once in a worker, tasks_limit"][0]


def test_jobs_have_the_limits_of_the_page() -> None:
    for name in ("timeout", "ttl"):
        assert Job("greet", **{name: timedelta(milliseconds=1)})
        with pytest.raises(ValueError, match="hundred years"):
            Job("greet", **{name: timedelta(microseconds=999)})
    for name in ("deferred_by", "args_ttl", "result_ttl"):
        assert Job("greet", **{name: timedelta(seconds=1)})
        with pytest.raises(ValueError, match="hundred years"):
            Job("greet", **{name: timedelta(milliseconds=999)})
    assert Job("greet", retries=2_147_483_647, id_="x" * 256, queue="q" * 128)
    for wrong in ({"retries": 2_147_483_648}, {"id_": "x" * 257}, {"queue": "q" * 129}, {"id_": "a/b"}, {"id_": "a\n"}):
        with pytest.raises(ValueError, match=r"retries|not valid"):
            Job("greet", **wrong)  # type: ignore[arg-type]


# -- inside the brokers ----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def connected(broker: Any) -> AsyncIterator[Any]:
    await broker.connect()
    try:
        yield broker
    finally:
        await broker.disconnect()


async def take(broker: MessageBroker, number: int = 1, category: MessageCategory = MessageCategory.NORMAL) -> Any:
    """A consumer that holds so many messages."""
    consumer = broker.consumer("mail", ["greet"], prefetch=100, category=category)
    await consumer.start()
    held: list[Any] = []
    while len(held) < number:
        held += await consumer.receive(number - len(held))
    return consumer, held


def death() -> Death:
    return Death(DeathReason.FAILED, now())


async def test_redis_has_the_keys_that_the_page_names(tmp_path: Path) -> None:
    client_library, package = pytest.importorskip("redis"), pytest.importorskip("repid_redis")
    documented: dict[str, str] = {}
    for names, kinds, _ in tables("explanation/inside-the-brokers.md")[1]:
        each = names.split(", ")
        documented |= dict(zip(each, kinds.split(", ") * (len(each) if "," not in kinds else 1), strict=True))
    seen: dict[str, str] = {}
    with servers.redis(tmp_path) as settings, client_library.Redis.from_url(settings["url"]) as client:
        base = f"{settings['prefix']}:{{mail}}:"

        def look() -> None:
            for key in client.scan_iter(f"{settings['prefix']}:*", count=10_000):
                name, kind = key.decode(), client.type(key).decode()
                assert name.startswith(base)
                name = re.sub(r"([a-z]-)[0-9a-f]{16}$", r"n-…", name.removeprefix(base))
                seen[name] = kind

        try:
            async with connected(package.RedisMessageBroker(**settings, lease=timedelta(seconds=1))) as broker:
                await broker.enqueue(envelope("ready"))
                await broker.enqueue(envelope("later", due=now() + timedelta(hours=1)))
                look()
                consumer, [delivery] = await take(broker)
                look()
                await consumer.pause()  # makes void what it may have asked for, so there is an epoch
                look()
                await delivery.nack(death())
                watcher = broker.consumer("mail", None, prefetch=1)
                await watcher.start()  # hears of all topics
                look()
                await watcher.close()
                await consumer.close()
            async with connected(package.RedisMessageBroker(**settings, lease=timedelta(seconds=1))) as dies:
                await dies.enqueue(envelope("killer"))
                await take(dies)
                dies._abandon()
                async with connected(package.RedisMessageBroker(**settings, lease=timedelta(seconds=1))) as heir:
                    consumer, [delivery] = await take(heir)  # once the lease is over
                    look()
                    assert delivery.redelivered
                    await consumer.close()
                    await heir.delete_queue("mail")
            async with connected(package.RedisBucketBroker(**settings)) as buckets:
                await buckets.store_bucket("one", b"data", timedelta(seconds=60))
                key = f"{settings['prefix']}:bucket:one"
                assert client.get(key) == b"\0data"
                assert client.pttl(key) > 0
        finally:
            for key in client.scan_iter(f"{settings['prefix']}:*", count=10_000):
                client.unlink(key)
    assert seen == documented


async def test_redis_gets_the_calls_that_the_page_shows(tmp_path: Path) -> None:
    client_library, package = pytest.importorskip("redis"), pytest.importorskip("repid_redis")
    from repid_redis import scripts

    made = [script for script in vars(scripts).values() if isinstance(script, scripts.Script)]
    names = {source.sha: script.name for script in made for source in (script.plain, script.when_full)}
    page = PAGES / "inside-the-brokers.md"
    [shown] = [block.code for block in blocks(page) if block.language == "text" and "BZPOPMIN" in block.code]
    lines = [re.sub(r"^(worker|producer) +", "", line).split() for line in shown.splitlines()]
    expected = [words[1] if words[0] == "EVALSHA" else words[0] for words in lines]
    seen: list[str] = []
    with servers.redis(tmp_path) as settings, client_library.Redis.from_url(settings["url"]) as client:

        def listen(monitor: Any) -> None:
            for heard in monitor.listen():
                if settings["prefix"] in heard["command"] and heard["client_type"] != "lua":
                    verb, what, *_ = heard["command"].split()
                    seen.append(names.get(what, what) if verb == "EVALSHA" else verb)
                    if seen[-1] == "ack":
                        return

        async with connected(package.RedisMessageBroker(**settings, client_name=settings["prefix"])) as broker:
            await broker.enqueue(envelope("first"))
            consumer, [delivery] = await take(broker)
            await delivery.ack()  # from now on the server knows the scripts, and the consumer that there is no more
            with client.monitor() as monitor:
                listening = asyncio.create_task(asyncio.to_thread(listen, monitor))
                receiving = asyncio.create_task(consumer.receive(1))
                while not any("b" in each["flags"] for each in client.client_list() if each["name"] == settings["prefix"]):
                    await asyncio.sleep(0.01)  # markers that are left of the first message wake it before
                await broker.enqueue(envelope("second"))
                [delivery] = await receiving
                await delivery.ack()
                await asyncio.wait_for(listening, 20)
            await consumer.close()
            await broker.delete_queue("mail")
    calls = [name for name in seen if name != "beat"]
    assert calls[calls.index("enqueue") - 1 :] == expected


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
async def test_rabbitmq_has_the_queues_and_exchanges_that_the_page_names(queue_type: str, tmp_path: Path) -> None:
    package = pytest.importorskip("repid_rabbitmq")
    from pamqp import commands

    from repid_rabbitmq.link import ChannelClosedError

    with servers.rabbitmq(tmp_path) as settings:
        kinds: dict[str, str] = {}
        for cell, kind, _ in tables("explanation/inside-the-brokers.md")[3]:
            first, *more = cell.split(" to ")
            names = first.split(", ")
            if more:
                low, high = int(first[-2:]), int(more[0][-2:])
                names = [f"{first[:-2]}{number:02}" for number in range(low, high + 1)]
            kinds |= dict.fromkeys((name.replace("repid.", f"{settings['prefix']}.") for name in names), kind)
        async with connected(package.RabbitMessageBroker(**settings, queue_type=queue_type)) as broker:
            topology, line = broker.topology, broker._producing

            async def there(name: str) -> bool:
                try:
                    await topology._run(line, [commands.Queue.Declare(queue=name, passive=True)])
                except ChannelClosedError as refused:
                    return refused.code != 404
                return True

            try:
                await broker.enqueue(envelope("later", due=now() + timedelta(hours=1)))
                deaths = await topology.open_deaths(line, "mail", "some")
                kinds = {name.replace("deaths:…", deaths.rpartition(":mail:")[2]): kind for name, kind in kinds.items()}
                for name, kind in kinds.items():
                    if kind == "queue":
                        others = queue_type == "classic" and name.endswith((":high", ":low"))
                        assert await there(name) is not others, name
                    else:  # a type that differs is an error to the server
                        declared = commands.Exchange.Declare(exchange=name, exchange_type=kind.split()[0], durable=True)
                        await topology._run(line, [declared])
                assert topology.names("mail").level(24) in kinds
                assert topology.names("mail").exchange(25) in kinds
                assert topology.way(envelope(), 0) == ("", f"{settings['prefix']}.v1:mail")
                exchange, key = topology.way(envelope(), 5)
                assert (exchange, key[-7:]) == (topology.names("mail").exchange(3), "1.0.1.m")  # as the picture has it
            finally:
                await topology.close_deaths(line, "mail", "some")
                await broker.delete_queue("mail")
                assert not await there(topology.names("mail").dead)


async def test_sqlite_has_the_tables_that_the_page_names(tmp_path: Path) -> None:
    package = pytest.importorskip("repid_sqlite")
    file = tmp_path / "jobs.db"
    async with connected(package.SqliteMessageBroker(file)):
        with contextlib.closing(sqlite3.connect(file)) as db:
            names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            columns = {name: [row[1] for row in db.execute(f"PRAGMA table_info({name})")] for name in names}
            indexes = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
            [mode] = db.execute("PRAGMA journal_mode").fetchone()
        assert stat.S_IMODE(file.stat().st_mode) == 0o644 & ~_umask(), "security.md says that it is made with the umask"
    columns.pop("sqlite_sequence")
    assert {row[0]: row[1].split(", ") for row in tables("explanation/inside-the-brokers.md")[5]} == columns
    assert {"waiting", "delayed", "dead", "held", "live"} <= indexes
    assert mode == "wal"


def _umask() -> int:
    old = os.umask(0o022)
    os.umask(old)
    return old


async def test_s3_has_the_objects_that_the_page_describes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("repid_s3")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with servers.s3(tmp_path) as settings:
        session = servers.servers_of("repid-s3").session()
        bucket = settings["url"].split("/")[2]
        made = {**settings, "url": f"s3://{bucket}/my-app/"}
        async with connected(package.S3BucketBroker(**made, session=session)) as broker:
            await broker.store_bucket("a:b", b"data", timedelta(hours=1))
            await broker.store_bucket("x:" * 128, b"data", None)
            client = session.client("s3", endpoint_url=settings["endpoint_url"])
            keys = [item["Key"] for item in client.list_objects_v2(Bucket=bucket)["Contents"]]
            assert min(keys) == "my-app/a%3Ab"
            assert re.fullmatch(r"my-app/~[0-9a-f]{64}", max(keys))
            head = client.head_object(Bucket=bucket, Key="my-app/a%3Ab")
            tags = client.get_object_tagging(Bucket=bucket, Key="my-app/a%3Ab")["TagSet"]
            rules = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
            described = {row[0].split()[-1]: row[1] for row in tables("explanation/inside-the-brokers.md")[6]}
            assert {"body", *head["Metadata"], tags[0]["Key"]} == set(described)
            assert tags[0]["Value"] == "d1"
            assert head["Metadata"]["repid-format"] == "1"
            assert all(re.match(r"repid-[0-9a-f]{8}-", rule["ID"]) for rule in rules)
            client.put_object(Bucket=bucket, Key="my-app/big", Body=b"x" * 2000, Metadata={"repid-format": "1"})
            async with connected(package.S3BucketBroker(**made, session=session, max_payload=1000)) as careful:
                with pytest.raises(BucketBrokerError, match="raise max_payload"):
                    await careful.get_bucket("big")
            client.close()


# -- security --------------------------------------------------------------------------------------------------------------


async def work(connection: Connection, messages: int) -> Any:
    async with asyncio.timeout(30):
        return await Worker([router], messages_limit=messages, connection=connection, handle_signals=()).run()


async def deaths(connection: Connection) -> list[Death]:
    count, found = (await connection.message_broker.queue_stats("mail")).dead or 0, []
    async for message in Queue("mail", connection=connection).get_messages(category=MessageCategory.DEAD):
        assert message.death is not None
        found.append(message.death)
        await message.ack()
        if len(found) == count:
            break
    return found


HOSTILE = {
    "a nesting of a million": envelope("deep", b'{"name": ' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}"),
    "a number of 5,000 digits": envelope("long", b'{"name": ' + b"9" * 5000 + b"}"),
    "a content type that nobody reads": envelope("type", content_type="application/x-python-pickle"),
    "arguments that do not fit": envelope("args", b'{"name": "secret", "more": 1}'),
    "a content type of megabytes": envelope("large", content_type="x" * 3_000_000),
    "a hundred thousand arguments": envelope("many", json.dumps({f"argument{number}": 1 for number in range(100_000)}).encode()),
    "no JSON": envelope("none", b"\x80\x04."),
    "arguments in a bucket that is nowhere": envelope("gone", b"", args_id="nowhere"),
}


@pytest.mark.parametrize("message", HOSTILE.values(), ids=HOSTILE)
async def test_a_hostile_message_is_dead_and_the_worker_goes_on(message: Envelope, caplog: pytest.LogCaptureFixture) -> None:
    async with Connection(InMemoryMessageBroker(), InMemoryBucketBroker()) as connection:
        await connection.message_broker.enqueue(message)
        await connection.message_broker.enqueue(envelope("good"))
        summary = await work(connection, 2)
        assert (summary.succeeded, summary.invalid, ran) == (1, 1, ["Alex"])
        assert [each.reason for each in await deaths(connection)] == [DeathReason.INVALID]
    assert "secret" not in caplog.text  # arguments are not for the log
    assert len(caplog.text) < 3000


@pytest.mark.parametrize(
    "recurrence",
    [Recurrence(cron="* * * * *", timezone="../../etc/passwd"), Recurrence(cron="0 0 30 2 *"), Recurrence(cron="*" * 10_000)],
    ids=["path", "never", "long"],
)
async def test_a_hostile_recurrence_ends_after_its_run(recurrence: Recurrence, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    async with Connection(InMemoryMessageBroker()) as connection:
        message = envelope()
        message = attrs.evolve(message, parameters=attrs.evolve(message.parameters, recurrence=recurrence))
        await connection.message_broker.enqueue(message)
        await work(connection, 1)
        assert [each.reason for each in await deaths(connection)] == [DeathReason.INVALID]


async def test_redis_survives_what_others_write(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    client_library, package = pytest.importorskip("redis"), pytest.importorskip("repid_redis")
    caplog.set_level(logging.CRITICAL)
    with servers.redis(tmp_path) as settings, client_library.Redis.from_url(settings["url"]) as client:
        base = f"{settings['prefix']}:{{mail}}:"
        records = {"a": b"", "b": b"\n", "c": b"\xff" * 100, "d": b"1greet\n", "e": b"1greet\n12345678" + b"RPM\1" + b"\xff" * 12,
                   "f": b"7greet\n12345678" + encode_envelope(envelope(), with_key=False)}  # fmt: skip
        broker = package.RedisMessageBroker(**settings)
        store = package.RedisBucketBroker(**settings, max_payload=1 << 20)
        try:
            async with Connection(broker, store, store) as connection:
                await broker.enqueue(attrs.evolve(envelope("other"), key=RoutingKey("other", "unknown", "mail")))
                for id_, record in records.items():
                    client.hset(f"{base}b", id_, record)
                    client.rpush(f"{base}r:1greet", id_)
                client.sadd(f"{base}t", "1greet")
                client.set(f"{settings['prefix']}:bucket:bomb", b"\1" + zlib.compress(b"\0" * (64 << 20)))
                await broker.enqueue(envelope("bombed", b"", args_id="bomb"))
                await broker.enqueue(envelope("good"))
                summary = await work(connection, len(records) + 2)
                assert (summary.invalid, summary.failed, ran) == (len(records), 1, ["Alex"])
                stats = await broker.queue_stats("mail")
                assert (stats.ready, stats.dead) == (1, len(records) + 1)  # the unknown actor's stays
                with pytest.raises(BucketBrokerError, match="unpacks to more than max_payload"):
                    await store.get_bucket("bomb")
                assert {each.reason for each in await deaths(connection)} == {DeathReason.INVALID, DeathReason.FAILED}
                await broker.delete_queue("mail")
        finally:
            for key in client.scan_iter(f"{settings['prefix']}:*", count=10_000):
                client.unlink(key)


async def test_rabbitmq_survives_what_others_publish(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    package = pytest.importorskip("repid_rabbitmq")
    from repid_rabbitmq import frames

    caplog.set_level(logging.CRITICAL)
    with servers.rabbitmq(tmp_path) as settings:
        async with Connection(package.RabbitMessageBroker(**settings)) as connection:
            broker = connection.message_broker
            assert isinstance(broker, package.RabbitMessageBroker)
            await broker.declare_queue("mail")
            way = broker.topology.way(envelope(), 0)
            headers: list[dict[str, bytes]] = [{}, {"repid": b""}, {"repid": b"1 {}"}, {"repid": b"\xff" * 1000}]
            for number, header in enumerate(headers):
                props = frames.properties(
                    header, content_type="", priority=0, correlation_id="", message_id=f"m{number}", timestamp=0, topic="greet"
                )
                await broker.send("mail", way, props, b"\0", f"m{number}")
            await broker.enqueue(envelope("good"))
            try:
                summary = await work(connection, len(headers) + 1)
                assert (summary.invalid, ran) == (len(headers), ["Alex"])
                while (await broker.queue_stats("mail")).dead != len(headers):
                    await asyncio.sleep(0.05)
                assert {each.reason for each in await deaths(connection)} == {DeathReason.INVALID}
            finally:
                await broker.delete_queue("mail")


async def test_whoever_writes_messages_can_reach_buckets_as_the_page_warns(caplog: pytest.LogCaptureFixture) -> None:
    buckets = InMemoryBucketBroker()
    async with Connection(InMemoryMessageBroker(), buckets, buckets) as connection:
        victim: Job[str] = Job("greet", args={"name": "Alex"}, args_id="mine", connection=connection, queue="mail")
        await victim.enqueue()
        message = envelope("evil", b"", args_id="mine", args_owned=True)
        parameters = attrs.evolve(message.parameters, result_id=victim.result_id)
        await connection.message_broker.enqueue(attrs.evolve(message, parameters=parameters))
        await work(connection, 2)
        assert await buckets.get_bucket("mine") is None
        assert await victim.wait(5) == "Hello Alex"


@pytest.mark.parametrize(
    "section",
    [
        {"url": "redis://user:hunter22@localhost/0", "lease": "never"},
        {"url": "amqp://user:hunter22@localhost/", "heartbeat": "never"},
        {"url": "redis://localhost", "password": "hunter22", "lease": "never"},
    ],
    ids=["url", "amqp", "setting"],
)
def test_errors_of_a_configuration_have_no_secrets(section: dict[str, str]) -> None:
    for package in ("repid_redis", "repid_rabbitmq"):
        pytest.importorskip(package)
    with pytest.raises(SettingsError) as raised:
        Connection.from_config({"message_broker": section}, environ={})
    assert "never" in str(raised.value)
    assert "hunter22" not in str(raised.value)


def test_a_broker_that_is_made_shows_no_secrets() -> None:
    redis, rabbitmq = pytest.importorskip("repid_redis"), pytest.importorskip("repid_rabbitmq")
    for broker in (
        redis.RedisMessageBroker("redis://user:hunter22@localhost/0"),
        redis.RedisBucketBroker(password="hunter22"),  # noqa: S106
        rabbitmq.RabbitMessageBroker("amqp://user:hunter22@localhost/"),
    ):
        assert "hunter22" not in f"{broker!r} {broker.settings!r}"


def test_a_configuration_may_read_the_environment() -> None:
    read = repid_core.config.load({"message_broker": "memory", "serializer": "${SECRET}"}, {"SECRET": "json"})
    assert read.sections["serializer"].backend.name == "json"


async def test_the_health_server_listens_on_loopback_and_answers_three_paths() -> None:
    assert HealthCheckServerSettings().address == "127.0.0.1"
    server = HealthCheckServer(HealthCheckServerSettings(port=0), lambda: None, lambda: None)
    await server.start()

    async def ask(request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request)
        reply = b""
        with contextlib.suppress(ConnectionError):
            reply = await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        return reply.split(b"\r\n")[0]

    try:
        for path in ("/livez", "/readyz", "/healthz"):
            assert await ask(f"GET {path} HTTP/1.1\r\n\r\n".encode()) == b"HTTP/1.1 200 OK"
        assert b" 404 " in await ask(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert b" 405 " in await ask(b"POST /livez HTTP/1.1\r\n\r\n")
        assert b" 200 " not in await ask(b"GET /livez HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n")
    finally:
        await server.stop()


def sources() -> Iterator[tuple[str, str]]:
    names = ("repid_core", "repid_redis", "repid_rabbitmq", "repid_sqlite", "repid_s3", "repid_msgspec", "repid_pydantic")
    for package in [Path(str(pytest.importorskip(name).__file__)).parent for name in names]:
        for file in package.rglob("*.py"):
            if "testing" not in file.relative_to(package).parts:
                yield str(file.relative_to(package.parent)), file.read_text("utf-8")


def places(pattern: str) -> Collection[str]:
    return {name for name, text in sources() if re.search(pattern, text, re.MULTILINE)}


def test_nothing_unpickles_or_listens_but_what_the_page_says() -> None:
    assert places(r"pickle\.loads?\(") == {"repid_core/executors.py"}
    assert places(r"(?<![\w.])(eval|exec)\(|marshal\.loads?\(|yaml\.load\(") == set()
    assert places(r"start_server\(|start_unix_server\(|\.bind\(address|create_server\(") == {
        "repid_core/health.py",
        "repid_sqlite/links.py",
    }


# -- what is promised ------------------------------------------------------------------------------------------------------


async def test_a_worker_says_of_its_states_what_the_page_says() -> None:
    rows = {row[0]: (row[3][:3], row[4][:3]) for row in tables("explanation/guarantees.md")[3]}
    begun, finish = asyncio.Event(), asyncio.Event()
    slow = Router()

    @slow.actor
    async def wait() -> None:
        begun.set()
        await finish.wait()

    def said(worker: Worker) -> tuple[str, str]:
        shift = worker._shift
        assert isinstance(shift, _Shift)
        return ("503" if shift.alive() else "200", "503" if shift.alive() or shift.ready() else "200")

    starting: list[tuple[str, str]] = []

    class Starts:
        def before_worker_start(self, connection: Connection) -> None:
            starting.append(said(worker))

    async with Connection(InMemoryMessageBroker(), middlewares=[Starts()]) as connection:
        worker = Worker([slow], connection=connection, handle_signals=())
        await Job("wait", connection=connection).enqueue()
        running = asyncio.create_task(worker.run())
        await begun.wait()
        assert starting == [rows["starting"]]
        assert said(worker) == rows["running"]
        [consumer] = worker._shift._consumers.values()  # type: ignore[union-attr]
        consumer.healthy = False
        assert said(worker) == rows["paused: the broker is away"]
        consumer.healthy = True
        worker._shift._processor.holding = 1  # type: ignore[union-attr]
        assert said(worker) == rows["paused: a bucket store is away"]
        worker.stop()
        assert said(worker) == rows["draining"]
        finish.set()
        await running


async def test_dead_and_delayed_messages_in_hand_go_back_where_they_came_from() -> None:
    async with Connection(InMemoryMessageBroker()) as connection:
        broker = connection.message_broker
        await broker.enqueue(envelope("dead"))
        consumer, [delivery] = await take(broker)
        await delivery.nack(death())
        await consumer.close()
        await broker.enqueue(envelope("later", due=now() + timedelta(hours=1)))
        for category in (MessageCategory.DEAD, MessageCategory.DELAYED):
            consumer, _ = await take(broker, 1, category)
            await consumer.close()
            listed: list[Browsed] = [each async for each in broker.browse("mail", category)]
            assert len(listed) == 1, category
