"""Jobs that are chained by one id: a result in Redis is read as arguments by another broker of the same URL."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from servers import Server

CHAIN = """
import asyncio
import os

from repid_core import Connection, Job, Repid, Router, Worker
from repid_redis import RedisBucketBroker, RedisMessageBroker

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


def test_a_result_is_the_next_jobs_arguments(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    script = tmp_path / "chain.py"
    script.write_text(CHAIN, "utf-8")
    urls = {"REDIS_CONNECTION": server.url, "REDIS_ARGS_CONNECTION": server.url.removesuffix("/0") + "/1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        env={**os.environ, **urls},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['This is your first message!', 'Hello Alex!', 'Your id is 123.']\n"
