"""Arguments and results in S3, through the whole framework."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from typing import Any

from repid_core import Connection, InMemoryMessageBroker, Job, Repid, Router, Worker
from repid_s3 import S3BucketBroker
from servers import on_both_servers, session


@on_both_servers
async def test_arguments_and_results(place: str, client: Any) -> None:
    """A result is read as the arguments of the next job, and arguments go when their job has ended."""
    app = Repid(
        Connection(
            InMemoryMessageBroker(),
            args_bucket_broker=S3BucketBroker(place, session=session()),
            results_bucket_broker=S3BucketBroker(place, session=session()),
        )
    )
    router = Router()

    @router.actor(queue="q")
    async def double(text: str) -> dict[str, str]:
        return {"text": 2 * text}

    async with app.magic(auto_disconnect=True):
        first = Job("double", "q", args={"text": "x" * 100_000}, use_args_bucketer=True, store_result=True)
        await first.enqueue()
        await Worker(routers=[router], messages_limit=1, handle_signals=()).run()
        assert (await first.wait(timeout=5))["text"] == "x" * 200_000
        second = Job("double", "q", args_id=first.result_id, store_result=True, result_ttl=timedelta(hours=1))
        await second.enqueue()
        await Worker(routers=[router], messages_limit=1, handle_signals=()).run()
        assert len((await second.wait(timeout=5))["text"]) == 400_000
    keys = {found["Key"] for found in client.list_objects_v2(Bucket=place.split("/")[2])["Contents"]}
    assert keys == {f"jobs/{first.result_id}", f"jobs/{second.result_id}"}


def test_a_program_that_closes_nothing_ends_in_silence(place: str) -> None:
    """`app.sync()` closes the connection when the interpreter ends, and starts no more threads."""
    program = (
        "import sys; from repid_core import *; from repid_s3 import S3BucketBroker\n"
        "connection = Connection(InMemoryMessageBroker(), results_bucket_broker=S3BucketBroker(sys.argv[1]))\n"
        "Repid(connection).sync().enqueue(Job('x'))\n"
    )
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    done = subprocess.run(
        [sys.executable, "-c", program, place],
        env={**os.environ, **keys},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
