"""What the how-to pages about jobs in production say: their files run, their tables are the code's, their claims hold."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from repid_core import (
    INJECTED,
    BucketBroker,
    Capability,
    Connection,
    DeathReason,
    InMemoryBucketBroker,
    InMemoryMessageBroker,
    Job,
    Limits,
    MessageBroker,
    MessageCategory,
    MessageDependency,
    Queue,
    Repid,
    Router,
    Worker,
)
from repid_core.testing import Harness
from tests.integration.test_docs import ROOT, blocks, files_of
from tests.integration.test_docs_facts import tables

pytestmark = pytest.mark.examples

HOW_TO = ROOT / "docs" / "how-to"


def module(page: str, file: str) -> ModuleType:
    """A file that a page shows, imported."""
    name = file.removesuffix(".py")
    spec = importlib.util.spec_from_loader(name, loader=None)
    assert spec is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made  # annotations are looked up there
    exec(compile(files_of(HOW_TO / page)[file], file, "exec"), made.__dict__)  # noqa: S102 — the page's own code
    return made


def sql(page: str) -> str:
    return "".join(block.code for block in blocks(HOW_TO / page) if block.language == "sql")


def ended(command: list[str], folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=folder,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
        stdin=subprocess.DEVNULL,
    )


async def delayed(connection: Connection) -> dict[str, datetime | None]:
    """When the messages of the default queue are due, by id."""
    browsed = connection.message_broker.browse("default", MessageCategory.DELAYED)
    return {item.envelope.key.id_: item.envelope.due async for item in browsed}


CRASHING = """
import asyncio, os, sys
from application import router
from repid_core import Connection, Repid, Worker
from repid_sqlite import SqliteMessageBroker

limit, dies = int(sys.argv[1]), sys.argv[2:]

class Diary:
    def before_actor_run(self, envelope):
        print(envelope.key.topic, flush=True)

    def before_ack(self, envelope):
        if envelope.key.topic in dies:
            os.kill(os.getpid(), 9)

async def main():
    async with Repid(Connection(SqliteMessageBroker("jobs.db"), middlewares=[Diary()])).magic(auto_disconnect=True):
        await Worker([router], messages_limit=limit).run()

asyncio.run(main())
"""


async def crashes(folder: Path, application: str, job: dict[str, Any], *workers: tuple[str, ...]) -> list[str]:
    """What workers in processes of their own start, one after the other: (messages_limit, actors after which they die…)."""
    from repid_sqlite import SqliteMessageBroker

    (folder / "application.py").write_text(application, "utf-8")
    (folder / "worker.py").write_text(CRASHING, "utf-8")
    async with Connection(SqliteMessageBroker(folder / "jobs.db")) as connection:
        await Job(**job, connection=connection).enqueue()
    said = []
    for limit, *dies in workers:
        done = await asyncio.to_thread(ended, ["worker.py", limit, *dies], folder)
        assert done.returncode == (-9 if dies else 0), done.stderr
        said += done.stdout.split()
    return said


# -- chain-jobs.md ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def report() -> ModuleType:
    return module("chain-jobs.md", "report.py")


async def test_the_total_waits_for_all_parts_and_counts_no_attempt(report: ModuleType) -> None:
    async with Harness([report.router]) as repid:
        counted = repid.mock(report.count_words, side_effect=[OSError("once"), 2, 4])
        job = await report.start(repid.connection, "report", ["to be", "or not to be"])
        await repid.run_until_idle()
        assert await job.result is None
        assert repid.events.kinds("total") == ["enqueued", "started", "rescheduled"]
        await repid.advance(timedelta(minutes=1))
        assert await job.wait() == 6
        assert counted.await_count == 3
        assert len(repid.events.of("rescheduled", actor="total")) > 1


@pytest.mark.parametrize("how", ["it failed", "nothing is known of it"])
async def test_the_total_dies_without_a_part(report: ModuleType, how: str) -> None:
    async with Harness([report.router], raise_errors=False) as repid:
        repid.mock(report.count_words, side_effect=ValueError("no text"))
        if how == "it failed":
            await report.start(repid.connection, "report", ["to be"])
            await repid.advance(timedelta(hours=1))
        else:
            await Job.of(report.total)(["report.0"], datetime.now(UTC) - timedelta(seconds=1)).enqueue()
            await repid.run_until_idle()
        async for message in Queue().get_messages(["total"], MessageCategory.DEAD):
            assert message.death is not None
            assert message.death.reason is DeathReason.NACKED
            assert message.death.error == "without report.0 there is no total"
            break


async def test_a_chain_goes_on_when_the_worker_dies_after_it_enqueued_the_next(tmp_path: Path) -> None:
    [code] = [block.code for block in blocks(HOW_TO / "chain-jobs.md") if "async def resize" in block.code]
    job = {"name": "resize", "id_": "cat", "args": ["cat.png"], "store_result": False}
    started = await crashes(tmp_path, code.replace("asyncio.run(main())", ""), job, ("1", "resize"), ("2",))
    assert sorted(started) == ["publish", "resize", "resize"]


async def test_arguments_in_another_store_than_the_result_are_gone() -> None:
    router = Router()

    @router.actor
    async def first() -> dict[str, str]:
        return {"text": "hello"}

    @router.actor
    async def second(text: str) -> None: ...

    connection = Connection(InMemoryMessageBroker(), InMemoryBucketBroker(), InMemoryBucketBroker())
    async with Repid(connection).magic(auto_disconnect=True):
        await Job("first", result_id="chain").enqueue()
        await Worker([router], messages_limit=1, handle_signals=()).run()
        await Job("second", args_id="chain").enqueue()
        await Worker([router], messages_limit=1, handle_signals=()).run()
        async for message in Queue().get_messages(category=MessageCategory.DEAD):
            assert message.death is not None
            assert message.death.reason is DeathReason.INVALID
            assert "the arguments are gone" in (message.death.error or "")
            break


# -- idempotency.md --------------------------------------------------------------------------------------------------------


async def test_a_deposit_is_made_once_by_an_actor_that_runs_three_times(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "bank.db") as db:
        db.executescript(sql("idempotency.md"))
        db.execute("INSERT INTO accounts VALUES ('Kim', 0)")
    db.close()
    args = {"key": "order-17.deposit", "account": "Kim", "cents": 500}
    bank = files_of(HOW_TO / "idempotency.md")["bank.py"]
    job = {"name": "deposit", "queue": "bank", "args": args}
    assert await crashes(tmp_path, bank, job, ("1", "deposit"), ("1", "deposit"), ("1",)) == 3 * ["deposit"]
    db = sqlite3.connect(tmp_path / "bank.db")
    assert db.execute("SELECT cents FROM accounts").fetchall() == [(500,)]
    db.close()


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(":memory:")
    db.executescript(sql("idempotency.md"))
    yield db
    db.close()


async def test_the_outbox_enqueues_what_was_committed_and_no_more(db: sqlite3.Connection) -> None:
    outbox = module("idempotency.md", "outbox.py")
    async with Harness() as repid:
        outbox.enqueue_on_commit(db, "charge", {"order": 16})
        db.rollback()
        with db:
            ids = [outbox.enqueue_on_commit(db, "charge", {"order": order}) for order in (17, 18)]
        kept = db.execute("SELECT * FROM outbox").fetchall()
        assert await outbox.relay(db, repid.connection) == 2
        assert await outbox.relay(db, repid.connection) == 0
        with db:  # as if it had died before it forgot them
            db.executemany("INSERT INTO outbox VALUES (?, ?, ?, ?)", kept)
        assert await outbox.relay(db, repid.connection) == 2
        assert [(job.id_, job.args) for job in repid.enqueued()] == list(zip(ids, [{"order": 17}, {"order": 18}], strict=True))


async def test_a_letter_is_sent_at_most_once(db: sqlite3.Connection) -> None:
    sent: list[str] = []

    async def send(text: str) -> None:
        sent.append(text)
        raise ConnectionError("nobody knows whether it went")

    router: Router = module("idempotency.md", "letter.py").make(db, send)
    async with Harness([router], raise_errors=False) as repid:
        await Job("letter", args=["17", "hello"], retries=1).enqueue()
        await repid.advance(timedelta(minutes=1))
        assert repid.events.kinds() == ["enqueued", "started", "failed", "retried", "started", "dead"]
    assert sent == ["hello"]


async def test_the_id_of_a_job_that_has_ended_is_free() -> None:
    router = Router()

    @router.actor
    async def charge() -> None: ...

    async with Harness([router]) as repid:
        for _ in range(2):
            await Job.of(charge, id_="17", on_duplicate="keep")().enqueue()
            await repid.run_until_idle()
        assert len(repid.events.of("succeeded")) == 2


# -- schedules.md ----------------------------------------------------------------------------------------------------------


def test_the_tests_on_the_page_pass(tmp_path: Path) -> None:
    for name in ("schedules.py", "test_schedules.py"):
        (tmp_path / name).write_text(files_of(HOW_TO / "schedules.md")[name], "utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n", "utf-8")
    done = ended(["-m", "pytest", "-q", "-p", "no:cacheprovider"], tmp_path)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


async def test_what_is_no_longer_in_the_file_is_cancelled_and_what_is_new_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    page = module("schedules.md", "schedules.py")
    async with Harness(start=datetime(2030, 1, 1, 0, 2, tzinfo=UTC)) as repid:
        await Job("poll", id_="not.a.schedule", deferred_by=timedelta(hours=1)).enqueue()
        await page.declare(repid.connection)
        assert await delayed(repid.connection) == {
            "not.a.schedule": datetime(2030, 1, 1, 1, 2, tzinfo=UTC),
            "schedule.poll": datetime(2030, 1, 1, 0, 5, tzinfo=UTC),
            "schedule.digest": datetime(2030, 1, 1, 7, 30, tzinfo=UTC),  # 8:30 in Berlin, in winter
        }
        again = Job(
            "poll", id_="schedule.poll", on_duplicate="replace", deferred_by=timedelta(hours=2), deferred_until=page.ANCHOR
        )
        monkeypatch.setattr(page, "schedules", lambda: [again])
        await page.declare(repid.connection)
        assert await delayed(repid.connection) == {
            "not.a.schedule": datetime(2030, 1, 1, 1, 2, tzinfo=UTC),
            "schedule.poll": datetime(2030, 1, 1, 2, tzinfo=UTC),
        }


async def test_a_schedule_that_runs_is_replaced_when_the_run_has_ended() -> None:
    page = module("schedules.md", "schedules.py")
    router, running, go_on = Router(), asyncio.Event(), asyncio.Event()

    @router.actor
    async def poll() -> None:
        running.set()
        await go_on.wait()

    async with Repid(connection := Connection(InMemoryMessageBroker())).magic(auto_disconnect=True):
        await Job("poll", id_="schedule.poll", deferred_by=timedelta(seconds=1)).enqueue()
        working = asyncio.create_task(Worker([router], messages_limit=1, handle_signals=()).run())
        await running.wait()
        assert not await Job("poll", id_="schedule.poll").cancel()
        declaring = asyncio.create_task(page.declare(connection))
        await asyncio.sleep(0.1)  # nothing is to happen
        assert not declaring.done()
        go_on.set()
        await working
        await declaring
        browsed = [b async for b in connection.message_broker.browse("default", MessageCategory.DELAYED)]
        assert {b.envelope.key.id_ for b in browsed} == {"schedule.poll", "schedule.digest"}
        [poll_again] = [b.envelope for b in browsed if b.envelope.key.topic == "poll"]
        assert poll_again.parameters.recurrence is not None
        assert poll_again.parameters.recurrence.interval == timedelta(minutes=5)


@pytest.mark.parametrize(("anchor", "runs"), [(None, 0), (datetime(2025, 1, 1, tzinfo=UTC), 6)])
async def test_an_interval_without_anchor_begins_anew_with_each_declaration(anchor: datetime | None, runs: int) -> None:
    router = Router()

    @router.actor
    async def hourly() -> None: ...

    job = Job.of(hourly, id_="hourly", on_duplicate="replace", deferred_by=timedelta(hours=1), deferred_until=anchor)
    async with Harness([router], start=datetime(2030, 1, 1, 0, 10, tzinfo=UTC)) as repid:
        for _ in range(12):
            await job().enqueue()
            await repid.advance(timedelta(minutes=30))
        assert len(repid.events.of("succeeded")) == runs


async def test_a_recurring_job_leaves_out_a_run_that_expired_and_one_that_is_due_once_dies() -> None:
    router = Router()

    @router.actor
    async def poll() -> None: ...

    async with Harness([router], start=datetime(2030, 1, 1, tzinfo=UTC)) as repid:
        now, hour = repid.clock.now(), timedelta(hours=1)
        await Job("poll", deferred_by=hour, ttl=timedelta(minutes=30)).enqueue()
        await Job("poll", deferred_until=now + hour, ttl=timedelta(minutes=30), id_="once").enqueue()
        await repid.clock.advance(timedelta(minutes=100))
        await repid.run_until_idle()
        assert repid.events.of("started").kinds() == []
        assert list((await delayed(repid.connection)).values()) == [now + 2 * hour]
        assert (await Queue().stats()).dead == 1


async def test_a_recurring_job_can_be_stopped_in_each_way_that_the_page_says() -> None:
    router = Router()

    @router.actor
    async def poll(message: MessageDependency = INJECTED) -> str:
        message.set_result("the last one")
        message.ack()

    async with Harness([router]) as repid:
        daily = {"deferred_by": timedelta(days=1)}
        await Job("poll", id_="poll", **daily).enqueue()  # type: ignore[arg-type]
        assert await Job("poll", id_="poll").cancel()
        await Job("poll", **daily).enqueue()  # type: ignore[arg-type]
        async for message in Queue().get_messages(["poll"], MessageCategory.DELAYED):
            await message.ack()
            break
        assert await delayed(repid.connection) == {}
        job: Job[str] = Job("poll", **daily)  # type: ignore[arg-type]
        await job.enqueue()
        await repid.advance(timedelta(days=1))
        assert await job.wait() == "the last one"
        await repid.advance(timedelta(days=3))
        assert len(repid.events.of("started")) == 1


async def test_the_ticker_enqueues_elsewhere() -> None:
    async with Connection(InMemoryMessageBroker()) as target:
        router = module("schedules.md", "ticker.py").ticker(target)
        async with Harness([router]) as repid:
            job = Job("tick", "schedules", id_="schedule.digest", args=["digest", "mail"], deferred_by=timedelta(hours=1))
            await job.enqueue()
            await repid.advance(timedelta(hours=2))
            assert (await target.message_broker.queue_stats("mail")).ready == 2


# -- dead-letters.md -------------------------------------------------------------------------------------------------------

DEAD = "dead-letters.md"


def test_the_reasons_are_those_of_the_code() -> None:
    assert [row[0] for row in tables(f"how-to/{DEAD}")[0]] == ["failed", "expired", "invalid", "nacked", "poison"]
    assert {row[0] for row in tables(f"how-to/{DEAD}")[0]} == {reason.value for reason in DeathReason}


def test_the_dead_are_kept_as_long_as_the_page_says() -> None:
    from repid_redis import RedisMessageBroker

    settings = RedisMessageBroker().settings
    kept = {row[0]: row[1] for row in tables(f"how-to/{DEAD}")[2]}
    assert settings.dead_max_age is None
    assert kept["Redis"] == f"{settings.dead_max_count:,} for each queue, the oldest go first; by age for ever"
    assert Limits().max_deliveries == 5
    assert "such deaths, 5 by default" in (HOW_TO / DEAD).read_text("utf-8")


GREETINGS = """
import asyncio, logging
from repid_core import Connection, Job, Repid, Router, Worker
from repid_sqlite import SqliteMessageBroker

logging.disable()
router = Router()
app = Connection(SqliteMessageBroker("jobs.db"))

@router.actor(queue="mail")
async def greet(name: str) -> None:
    raise ValueError(name)

async def main():
    async with Repid(app).magic(auto_disconnect=True):
        await Job("greet", "mail", id_="1f0c7b2e-5d0a-4c57-9d0e-1d7d1f6f3a11", args=["Alex"]).enqueue()
        await Job("greet", "mail").enqueue()
        await Worker([router], messages_limit=2).run()

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_the_commands_of_the_page_do_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app.py").write_text(GREETINGS, "utf-8")
    (tmp_path / "repid.toml").write_text('[message_broker]\nurl = "sqlite://./jobs.db"\n', "utf-8")
    assert ended(["app.py"], tmp_path).returncode == 0
    monkeypatch.chdir(tmp_path)
    said = {}
    consoles = [block.code for block in blocks(HOW_TO / DEAD) if block.language == "console"]
    for line in "".join(consoles).splitlines():
        said[line] = repid(*shlex.split(line.removeprefix("$ repid ")))
    shown = said["$ repid dead show --queue mail 1f0c7b2e-5d0a-4c57-9d0e-1d7d1f6f3a11"]
    assert "ValueError: Alex" in shown
    assert json.loads(repid("dead", "retry", "--queue", "mail", "--topic", "greet", "--json"))["retried"] == 2


def repid(*command: str) -> str:
    """What a command prints."""
    from repid_core.cli import main

    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert done.exit_code == 0, (command, done.output)
    return done.stdout


async def test_the_middleware_tells_of_deaths() -> None:
    told: list[str] = []

    async def tell(text: str) -> None:
        told.append(text)

    router = Router()

    @router.actor
    async def greet(message: MessageDependency = INJECTED) -> None:
        message.nack("no")

    async with Harness([router], raise_errors=False, middlewares=[module(DEAD, "alerts.py").Alerts(tell)]) as repid:
        await Job("greet", id_="one").enqueue()
        await Job("greet", id_="two", ttl=timedelta(minutes=1)).enqueue()
        await repid.run_one()
        await repid.clock.advance(timedelta(minutes=2))
        await repid.run_until_idle()
        assert (await Queue().stats()).dead == 2
    assert told == ["greet one is dead: nacked"]


async def redriven(job: Job[Any], router: Router, repid: Harness) -> None:
    await job.enqueue()
    await repid.advance(timedelta(hours=2))
    assert (await Queue().stats()).dead == 1
    async for message in Queue().get_messages(category=MessageCategory.DEAD):
        await message.reschedule()
        break


async def test_a_redriven_job_begins_anew_and_a_recurring_one_at_its_next_time() -> None:
    router = Router()

    @router.actor
    async def fragile() -> None:
        raise OSError

    @router.actor
    async def refusing(message: MessageDependency = INJECTED) -> None:
        message.nack("for good")

    async with Harness([router], raise_errors=False, start=datetime(2030, 1, 1, tzinfo=UTC)) as repid:
        await redriven(Job("fragile", retries=1, ttl=timedelta(hours=1)), router, repid)
        await repid.advance(timedelta(hours=1))
        assert repid.events.kinds("fragile").count("started") == 4
        await Queue().flush()
        await redriven(Job("refusing", deferred_by=timedelta(hours=1)), router, repid)
        assert list((await delayed(repid.connection)).values()) == [datetime(2030, 1, 1, 6, tzinfo=UTC)]


async def test_a_recurring_job_that_fails_does_not_die() -> None:
    router = Router()

    @router.actor
    async def fragile() -> None:
        raise OSError

    async with Harness([router], raise_errors=False) as repid:
        job = Job.of(fragile, deferred_by=timedelta(hours=1))()
        await job.enqueue()
        await repid.advance(timedelta(hours=3))
        assert len(repid.events.of("started")) == 3
        assert (await Queue().stats()).dead == 0
        bucket = await job.result
        assert bucket is not None
        assert not bucket.success


# -- choose-a-broker.md, large-payloads.md ---------------------------------------------------------------------------------


def message_brokers() -> dict[str, MessageBroker]:
    from repid_rabbitmq import RabbitMessageBroker
    from repid_redis import RedisMessageBroker
    from repid_sqlite import SqliteMessageBroker

    return {
        "memory": InMemoryMessageBroker(),
        "sqlite": SqliteMessageBroker("jobs.db"),
        "redis": RedisMessageBroker(),
        "rabbitmq": RabbitMessageBroker(),
    }


def bucket_brokers() -> dict[str, BucketBroker]:
    from repid_redis import RedisBucketBroker
    from repid_s3 import S3BucketBroker
    from repid_sqlite import SqliteBucketBroker

    return {
        "memory": InMemoryBucketBroker(),
        "sqlite": SqliteBucketBroker("jobs.db"),
        "redis": RedisBucketBroker(),
        "s3": S3BucketBroker("s3://bucket/"),
    }


def size(limits: Limits) -> str:
    return "none" if limits.max_payload is None else f"{limits.max_payload >> 20} MiB"


def test_the_capabilities_are_those_that_the_brokers_declare() -> None:
    table = tables("how-to/choose-a-broker.md")[1]
    brokers = message_brokers().values()
    assert table == [[c.name, *("yes" if c in broker.capabilities else "no" for broker in brokers)] for c in Capability]


def test_the_limits_are_those_that_the_brokers_declare() -> None:
    table = tables("how-to/choose-a-broker.md")[2]
    for name, *written in table:
        limits = [broker.limits for broker in message_brokers().values()]
        name = name.removesuffix("*")  # noqa: PLW2901
        assert written == [size(limit) if name == "max_payload" else str(getattr(limit, name)) for limit in limits], name
    fields = {"delay_step", "lease", "max_delay", "max_payload", "max_deliveries"}
    assert {row[0].removesuffix("*") for row in table} == fields


def test_the_sizes_are_those_that_the_brokers_declare() -> None:
    [buckets] = [row[1:] for row in tables("how-to/choose-a-broker.md")[4] if row[0] == "max_payload"]
    assert buckets == [size(broker.limits) for broker in bucket_brokers().values()]
    messages = {name: size(broker.limits) for name, broker in message_brokers().items()}
    stores = {name: size(broker.limits) for name, broker in bucket_brokers().items()}
    table = tables("how-to/large-payloads.md")[1]
    assert [row[:3] for row in table] == [
        [name, messages.get(name, "–"), stores.get(name, "–")] for name in ("memory", "sqlite", "redis", "rabbitmq", "s3")
    ]


def test_the_settings_that_the_pages_name_have_the_defaults_that_they_say() -> None:
    brokers, buckets = message_brokers(), bucket_brokers()
    redis, s3 = (vars(buckets[name])["settings"] for name in ("redis", "s3"))
    rabbit = vars(brokers["rabbitmq"])["settings"]
    assert redis.compress_from == 8 << 10
    assert (s3.poll_first, s3.poll_longest) == (timedelta(milliseconds=50), timedelta(seconds=2))
    assert (rabbit.queue_type, rabbit.heartbeat) == ("classic", timedelta(minutes=1))
    assert vars(brokers["redis"])["settings"].wait_replicas == 0
    assert Connection(InMemoryMessageBroker()).args_bucket_threshold == 0


def test_the_ratios_are_those_of_the_plugin_s_page() -> None:
    page = (HOW_TO / "choose-a-broker.md").read_text("utf-8").replace("\n", " ")
    measured = (ROOT / "plugins" / "repid-sqlite" / "README.md").read_text("utf-8")
    for row in ("enqueue, one at a time", "`enqueue_many`, 100 each", "run, 100 at once"):
        found = re.search(rf"^\| {re.escape(row)}.*\| ([\d.]+) \(([\d.]+)–([\d.]+)\) \|$", measured, re.MULTILINE)
        assert found is not None
        assert re.search(rf"{found[1]} times (as fast )?(as Redis )?\({found[2]} to {found[3]}\)", page), row


async def test_a_reference_is_passed_on(tmp_path: Path) -> None:
    page = module("large-payloads.md", "thumbnails.py")
    stored: dict[str, bytes] = {}

    class Store:
        async def put(self, key: str, data: bytes) -> None:
            stored[key] = data

        async def get(self, key: str) -> bytes:
            return stored[key]

    (tmp_path / "cat.png").write_bytes(b"x" * 1000)
    async with Harness([page.make(Store())]) as repid:
        job = await page.upload(Store(), tmp_path / "cat.png")
        await repid.run_until_idle()
        assert stored[await job.wait()] == b"x" * 100
