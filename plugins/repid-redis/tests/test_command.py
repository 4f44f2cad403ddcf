"""The `repid` command on Redis: many dead jobs, retried by processes that are interrupted and killed; what the server tells."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from attrs import astuple

from repid_core import Connection, Death, DeathReason, Job, MessageCategory, QueueStats
from repid_redis import RedisBucketBroker, RedisMessageBroker

MANY = 5_000
LEASE = timedelta(seconds=4)  # as long as no stall of a busy machine, and short enough to wait for its end

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def broker(redis_url: str, prefix: str) -> RedisMessageBroker:
    return RedisMessageBroker(redis_url, prefix=prefix, lease=LEASE)


@pytest.fixture
def repid(tmp_path: Path, redis_url: str, prefix: str) -> Iterator[Start]:
    """Start the command, configured by a file."""
    section = f'backend = "redis"\nurl = "{redis_url}"\nprefix = "{prefix}"\n'
    (tmp_path / "repid.toml").write_text(
        f'[message_broker]\n{section}lease = "{LEASE.total_seconds()} s"\n[results_bucket_broker]\n{section}', "utf-8"
    )
    with ExitStack() as stack:

        def start(*words: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "repid_core", *words]
            environment = {name: value for name, value in os.environ.items() if not name.startswith("REPID_")}
            process = stack.enter_context(
                subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)
            return process

        yield start


async def told(process: subprocess.Popen[str], *statuses: int) -> Any:
    """What it printed, once it has ended with one of these."""
    output, _ = await asyncio.to_thread(process.communicate)
    assert process.returncode in statuses, output
    return json.loads(output)


async def bury(broker: RedisMessageBroker, number: int) -> None:
    async with Connection(broker) as connection:
        for start in range(0, number, 1000):
            ids = [f"id{index}" for index in range(start, min(start + 1000, number))]
            await connection.enqueue_many([Job("greet", queue="mail", id_=id_, connection=connection) for id_ in ids])
        consumer = broker.consumer("mail", None, prefetch=500)
        await consumer.start()
        for _ in range(0, number, 500):
            left = 500
            while left:
                deliveries = await consumer.receive(left)
                left -= len(deliveries)
                death = Death(DeathReason.FAILED, datetime.now(UTC), 1, "ValueError: no stamps")
                await asyncio.gather(*(delivery.nack(death) for delivery in deliveries))
        await consumer.close()


async def until_some_are_retried(broker: RedisMessageBroker) -> None:
    while (await broker.queue_stats("mail")).ready == 0:
        await asyncio.sleep(0.001)


async def test_retrying_many_can_be_interrupted_and_killed_and_loses_nothing(broker: RedisMessageBroker, repid: Start) -> None:
    """Each of them is there once at the end, be the signals early or late."""
    await bury(broker, MANY)
    await broker.connect()
    interrupted = repid("dead", "retry", "--queue", "mail", "--json")
    await until_some_are_retried(broker)
    interrupted.send_signal(signal.SIGINT)
    first = await told(interrupted, 130, 0)
    assert first["interrupted"] == (interrupted.returncode == 130)
    assert await broker.queue_stats("mail") == QueueStats(first["retried"], 0, 0, MANY - first["retried"])

    killed = repid("dead", "retry", "--queue", "mail", "--json")
    if first["interrupted"]:
        while (await broker.queue_stats("mail")).ready == first["retried"]:
            await asyncio.sleep(0.001)
        killed.kill()
    await asyncio.to_thread(killed.communicate)
    assert sum(filter(None, astuple(await broker.queue_stats("mail")))) == MANY

    worker = broker.consumer("mail", ["another"], prefetch=1)  # its heartbeat finds who has died
    await worker.start()
    while (await broker.queue_stats("mail")).in_progress:  # what was in hand comes back when the lease is over
        await asyncio.sleep(0.05)
    last = await told(repid("dead", "retry", "--queue", "mail", "--json"), 0)
    assert (last["lost"], last["left"]) == (0, 0)
    assert (await broker.queue_stats("mail")).ready == MANY
    ids = [found.envelope.key.id_ async for found in broker.browse("mail", MessageCategory.NORMAL, limit=2 * MANY)]
    assert sorted(ids) == sorted(f"id{index}" for index in range(MANY))
    await broker.disconnect()


async def test_the_queues_are_those_that_hold_something(broker: RedisMessageBroker, prefix: str, redis_url: str) -> None:
    async with Connection(broker) as connection:
        assert await broker.queue_names() == []
        await Job("greet", queue="mail", connection=connection).enqueue()
        await Job("greet", queue="later", deferred_by=timedelta(hours=1), connection=connection).enqueue()
        assert await broker.queue_names() == ["later", "mail"]
        await broker.delete_queue("mail")
        assert await broker.queue_names() == ["later"]
    other = RedisMessageBroker(redis_url, prefix=f"{prefix}:x")
    async with Connection(other) as connection:
        await Job("greet", queue="odd", connection=connection).enqueue()
        assert await other.queue_names() == ["odd"]
    async with Connection(broker):
        assert await broker.queue_names() == ["later"]


async def test_the_server_tells_its_time(broker: RedisMessageBroker, redis_url: str, prefix: str) -> None:
    async with Connection(broker, results_bucket_broker=RedisBucketBroker(redis_url, prefix=prefix)) as connection:
        assert connection.results_bucket_broker is not None
        for store in (broker, connection.results_bucket_broker):
            before, after = await store.server_time(), await store.server_time()
            assert before is not None
            assert after is not None
            assert before <= after
            assert before.tzinfo is not None


async def test_check_finds_all_well(repid: Start) -> None:
    found = await told(repid("check", "--json", "--timeout", "60 s"), 0)
    assert found["ok"]
    assert {"messages: clock", "results: clock"} <= {finding["what"] for finding in found["findings"]}
