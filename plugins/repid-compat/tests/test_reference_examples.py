"""The document that describes arguments and results to users: its examples run word for word, under the import name `repid`."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from repid import Repid, Worker

PREPARATION = """
from repid import Connection, InMemoryMessageBroker, InMemoryBucketBroker

my_connection = Connection(
    message_broker=InMemoryMessageBroker(),
    args_bucket_broker=InMemoryBucketBroker(),
    results_bucket_broker=InMemoryBucketBroker(
        use_result_bucket=True,
    ),
)
"""

ACTOR = """
from repid import Router

router = Router()


@router.actor
async def actor_with_args(user_id: int, user_name: str, user_messages: list[str]) -> list[str]:
    user_message = f"Hi {user_name}! Your id is: {user_id}."
    user_messages.append(user_message)
    return user_messages
"""

ENQUEUE = """
from repid import Job

# code above is omitted

await Job(
    "actor_with_args",
    args=dict(user_id=123, user_name="Alex", user_messages=["This is your first message!"]),
).enqueue()

# code below is omitted
"""

RESULT = """
import asyncio

from repid import Job

# code above is omitted

myjob = Job(
    "actor_with_args",
    args=dict(user_id=123, user_name="Alex", user_messages=["This is your first message!"]),
)

await myjob.enqueue()

await asyncio.sleep(1.0)  # wait for the job to complete

result_bucket = await myjob.result

print(result_bucket)

# code below is omitted
"""

TTL = """
from datetime import timedelta

from repid import Job

Job("some_job", args_ttl=timedelta(weeks=2), result_ttl=timedelta(days=5))
"""

CHAIN = """
import asyncio
import os

from repid import Connection, Job, RedisBucketBroker, RedisMessageBroker, Repid, Router, Worker

redis_messages_dsn = os.environ.get("REDIS_CONNECTION")
redis_args_and_results_dsn = os.environ.get("REDIS_ARGS_CONNECTION")

my_connection = Connection(
    message_broker=RedisMessageBroker(redis_messages_dsn),
    args_bucket_broker=RedisBucketBroker(redis_args_and_results_dsn),
    results_bucket_broker=RedisBucketBroker(
        redis_args_and_results_dsn,
        use_result_bucket=True,
    ),
)

app = Repid(my_connection)

my_router = Router()


@my_router.actor
async def add_hello(user_name: str, user_id: int, messages: list[str]) -> dict:
    message = f"Hello {user_name}!"
    messages.append(message)
    return dict(user_id=user_id, messages=messages)


@my_router.actor
async def add_id(user_id: int, messages: list[str]) -> list[str]:
    message = f"Your id is {user_id}."
    messages.append(message)
    return messages


async def main() -> None:
    async with app.magic(auto_disconnect=True):
        w = Worker(routers=[my_router], messages_limit=1)
        await Job(
            "add_hello",
            args=dict(user_name="Alex", user_id=123, messages=["This is your first message!"]),
            result_id="chained_id",
        ).enqueue()
        await w.run()

        second_job = Job("add_id", args_id="chained_id")
        await second_job.enqueue()
        await w.run()

        result_bucket = await second_job.result
        print(result_bucket.data)


if __name__ == "__main__":
    asyncio.run(main())
"""

GREETINGS = ["This is your first message!", "Hi Alex! Your id is: 123."]


async def execute(source: str, namespace: dict[str, Any]) -> None:
    """Run a snippet that awaits outside of functions, as a notebook does."""
    code = compile(source, "<snippet>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    result = eval(code, namespace)  # noqa: S307 — it is written above
    if inspect.isawaitable(result):
        await result


async def test_arguments() -> None:
    namespace: dict[str, Any] = {}
    await execute(PREPARATION + ACTOR, namespace)
    async with Repid(namespace["my_connection"]).magic(auto_disconnect=True):
        await execute(ENQUEUE, namespace)
        summary = await Worker([namespace["router"]], messages_limit=1, handle_signals=()).run()
    assert summary.succeeded == 1


async def test_results(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {}
    await execute(PREPARATION + ACTOR, namespace)
    async with Repid(namespace["my_connection"]).magic(auto_disconnect=True):
        worker = Worker([namespace["router"]], handle_signals=())
        working = asyncio.create_task(worker.run())
        await execute(RESULT, namespace)
        worker.stop()
        await working
    assert namespace["result_bucket"].data == GREETINGS
    assert capsys.readouterr().out.startswith("ResultBucket(")


async def test_ttl() -> None:
    await execute(TTL, {})


def test_chained_jobs_on_redis(tmp_path: Path, redis_url: str) -> None:
    script = tmp_path / "chain.py"
    script.write_text(CHAIN, "utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        env={**os.environ, "REDIS_CONNECTION": redis_url, "REDIS_ARGS_CONNECTION": redis_url},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['This is your first message!', 'Hello Alex!', 'Your id is 123.']\n"
