"""The document that describes arguments and results to users: its examples run as written, and what it says is so.

Only the import name is repid-core's. The example that uses Redis has in-memory brokers here.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from repid_core import (
    BucketBroker,
    Config,
    Connection,
    Converter,
    InMemoryBucketBroker,
    InMemoryMessageBroker,
    Job,
    MessageCategory,
    Queue,
    Repid,
    Router,
    Serializer,
    Worker,
    WorkerSummary,
)
from repid_core.cattrs_converter import CattrsConverter
from repid_core.json_serializer import JsonSerializer
from repid_core.testing.clock import ManualClock

pytestmark = pytest.mark.examples

PREPARATION = """
from repid_core import Connection, InMemoryMessageBroker, InMemoryBucketBroker

my_connection = Connection(
    message_broker=InMemoryMessageBroker(),
    args_bucket_broker=InMemoryBucketBroker(),
    results_bucket_broker=InMemoryBucketBroker(
        use_result_bucket=True,
    ),
)
"""

ACTOR = """
from repid_core import Router

router = Router()


@router.actor
async def actor_with_args(user_id: int, user_name: str, user_messages: list[str]) -> list[str]:
    user_message = f"Hi {user_name}! Your id is: {user_id}."
    user_messages.append(user_message)
    return user_messages
"""

ENQUEUE = """
from repid_core import Job

# code above is omitted

await Job(
    "actor_with_args",
    args=dict(user_id=123, user_name="Alex", user_messages=["This is your first message!"]),
).enqueue()

# code below is omitted
"""

RESULT = """
import asyncio

from repid_core import Job

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

CHAIN = """
import asyncio
import os

from repid_core import Connection, Job, {brokers}, Repid, Router, Worker

{preparation}
my_connection = Connection(
    message_broker={message_broker},
    args_bucket_broker={args_bucket_broker},
    results_bucket_broker={results_bucket_broker},
)

app = Repid(my_connection)

my_router = Router()


@my_router.actor
async def add_hello(user_name: str, user_id: int, messages: list[str]) -> dict:
    message = f"Hello {{user_name}}!"
    messages.append(message)
    return dict(user_id=user_id, messages=messages)


@my_router.actor
async def add_id(user_id: int, messages: list[str]) -> list[str]:
    message = f"Your id is {{user_id}}."
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

TTL = """
from datetime import timedelta

from repid_core import Job

Job("some_job", args_ttl=timedelta(weeks=2), result_ttl=timedelta(days=5))
"""

GREETINGS = ["This is your first message!", "Hi Alex! Your id is: 123."]


async def execute(source: str, namespace: dict[str, Any]) -> None:
    """Run a snippet that awaits outside of functions, as a notebook does."""
    code = compile(source, "<snippet>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    result = eval(code, namespace)  # noqa: S307 — it is written above
    if inspect.isawaitable(result):
        await result


@asynccontextmanager
async def magic(connection: Connection) -> AsyncIterator[None]:
    async with Repid(connection).magic(auto_disconnect=True):
        yield


def connect(*, args: bool = True, results: bool = True, clock: ManualClock | None = None) -> Connection:
    return Connection(
        InMemoryMessageBroker(),
        InMemoryBucketBroker() if args else None,
        InMemoryBucketBroker(use_result_bucket=True) if results else None,
        clock=clock or ManualClock(),
    )


async def work(router: Router, messages: int = 1) -> WorkerSummary:
    async with asyncio.timeout(10):
        return await Worker([router], messages_limit=messages, handle_signals=()).run()


async def sent(queue: str = "default") -> Any:
    """The message that waits, and is left where it is."""
    async for message in Queue(queue).get_messages():
        return message
    raise AssertionError


def stored(broker: BucketBroker | None) -> list[str]:
    assert isinstance(broker, InMemoryBucketBroker)
    return sorted(broker._buckets)


@pytest.fixture
def router() -> Router:
    namespace: dict[str, Any] = {}
    exec(ACTOR, namespace)  # noqa: S102 — it is written above
    made = namespace["router"]
    assert isinstance(made, Router)
    return made


async def test_the_arguments_example_runs_and_its_actor_gets_them() -> None:
    namespace: dict[str, Any] = {}
    await execute(PREPARATION + ACTOR, namespace)
    async with magic(namespace["my_connection"]):
        await execute(ENQUEUE, namespace)
        summary = await work(namespace["router"])
    assert summary.succeeded == 1


async def test_the_results_example_prints_the_result_bucket(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {}
    await execute(PREPARATION + ACTOR, namespace)
    async with magic(namespace["my_connection"]):
        worker = Worker([namespace["router"]], handle_signals=())
        working = asyncio.create_task(worker.run())
        await execute(RESULT, namespace)
        worker.stop()
        await working
    assert namespace["result_bucket"].data == GREETINGS
    assert capsys.readouterr().out.startswith(f"ResultBucket(data={GREETINGS!r}, success=True, ")


async def test_the_ttl_example_is_a_job() -> None:
    await execute(TTL, {})


class Recording(JsonSerializer):
    def __init__(self) -> None:
        self.dumped: list[Any] = []

    def dumps(self, value: Any) -> bytes:
        self.dumped.append(value)
        return super().dumps(value)


async def test_arguments_are_serialized_using_the_configured_serializer(monkeypatch: pytest.MonkeyPatch) -> None:
    serializer: Serializer = Recording()
    monkeypatch.setattr(Config, "SERIALIZER", serializer)
    async with magic(connect()):
        await Job("actor_with_args", args={"user_id": 1}).enqueue()
    assert isinstance(serializer, Recording)
    assert serializer.dumped == [{"user_id": 1}]


async def test_arguments_go_into_the_message_if_there_is_no_args_bucket_broker(router: Router) -> None:
    async with magic(connect(args=False)):
        await Job("actor_with_args", args={"user_id": 1, "user_name": "Alex", "user_messages": []}).enqueue()
        message = await sent()
        assert b"Alex" in message.raw_payload
        assert (await work(router)).succeeded == 1


async def test_arguments_go_to_the_args_bucket_broker_by_default_if_there_is_one(router: Router) -> None:
    connection = connect()
    async with magic(connection):
        job: Job[Any] = Job("actor_with_args", args={"user_id": 1, "user_name": "Alex", "user_messages": []})
        args_id = job.args_id
        await job.enqueue()
        message = await sent()
        assert message.raw_payload == b""
        assert stored(connection.args_bucket_broker) == [args_id]
        assert (await work(router)).succeeded == 1


@pytest.mark.parametrize(("use", "in_bucket"), [(True, True), (False, False), (None, True)])
async def test_use_args_bucketer_decides_where_arguments_go(use: bool | None, in_bucket: bool) -> None:
    connection = connect()
    async with magic(connection):
        await Job("actor_with_args", args={"user_id": 1}, use_args_bucketer=use).enqueue()
        assert bool(stored(connection.args_bucket_broker)) is in_bucket
        assert bool((await sent()).raw_payload) is not in_bucket


async def test_the_actors_converter_has_inputs_and_outputs() -> None:
    calls: list[tuple[str, Any]] = []

    class Watching(CattrsConverter):
        def convert_inputs(self, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
            calls.append(("inputs", value))
            return super().convert_inputs(value)

        def convert_outputs(self, value: Any) -> Any:
            calls.append(("outputs", value))
            return super().convert_outputs(value)

    assert issubclass(Watching, Converter)
    router = Router()

    @router.actor(converter=Watching)
    async def double(number: int) -> int:
        return 2 * number

    async with magic(connect()):
        await Job("double", args={"number": 21}).enqueue()
        await work(router)
    assert calls == [("inputs", {"number": 21}), ("outputs", 42)]


@pytest.mark.parametrize(
    ("results", "store", "is_stored"), [(True, None, True), (True, False, False), (True, True, True), (False, None, False)]
)
async def test_the_result_is_stored_by_default_if_there_is_a_result_bucket_broker(
    router: Router, results: bool, store: bool | None, is_stored: bool
) -> None:
    connection = connect(results=results)
    async with magic(connection):
        job: Job[Any] = Job("actor_with_args", args=[1, "Alex", []], store_result=store)
        await job.enqueue()
        assert ((await sent()).parameters.result_id is not None) is is_stored
        await work(router)
        if results:
            assert stored(connection.results_bucket_broker) == ([job.result_id] if is_stored else [])


async def test_the_result_is_an_async_property(router: Router) -> None:
    async with magic(connect()):
        job: Job[Any] = Job("actor_with_args", args=[123, "Alex", ["This is your first message!"]])
        await job.enqueue()
        assert await job.result is None
        await work(router)
        bucket = await job.result
        assert bucket is not None
        assert bucket.data == GREETINGS


async def test_results_of_recurring_jobs_are_overwritten() -> None:
    router, clock, runs = Router(), ManualClock(), 0

    @router.actor
    async def count() -> int:
        nonlocal runs
        runs += 1
        return runs

    connection = connect(clock=clock)
    async with magic(connection):
        job: Job[Any] = Job("count", deferred_by=timedelta(seconds=1))
        await job.enqueue()
        results = []
        for _ in range(3):
            await clock.advance(timedelta(seconds=1))
            await work(router)
            bucket = await job.result
            assert bucket is not None
            results.append(bucket.data)
        assert results == [1, 2, 3]
        assert stored(connection.results_bucket_broker) == [job.result_id]


def test_ids_are_uuid4_by_default_for_both_buckets() -> None:
    job: Job[Any] = Job("some_job")
    ids = {job.args_id, job.result_id}
    assert len(ids) == 2
    assert all(uuid.UUID(id_).version == 4 and str(uuid.UUID(id_)) == id_ for id_ in ids)
    assert ids == {job.args_id, job.result_id}  # they stay until it is enqueued


async def test_ids_can_be_passed(router: Router) -> None:
    connection = connect()
    async with magic(connection):
        job: Job[Any] = Job("actor_with_args", args=[1, "Alex", []], args_id="my-args", result_id="my-result")
        await job.enqueue()
        await work(router)
        assert (job.args_id, job.result_id) == ("my-args", "my-result")
        assert stored(connection.args_bucket_broker) == ["my-args"]
        assert stored(connection.results_bucket_broker) == ["my-result"]


async def lives(what: str, ttl: timedelta, **options: Any) -> bool:
    """Whether a job's bucket is still there after a time."""
    router, clock = Router(), ManualClock()

    @router.actor
    async def some_job(number: int) -> int:
        return number

    connection = connect(clock=clock)
    async with magic(connection):
        await Job("some_job", args=[1], args_id="args", result_id="result", **options).enqueue()
        await work(router)
        broker = connection.args_bucket_broker if what == "args" else connection.results_bucket_broker
        assert broker is not None
        await clock.advance(ttl)
        return await broker.get_bucket(what) is not None


SECOND, DAY = timedelta(seconds=1), timedelta(days=1)


@pytest.mark.parametrize("what", ["args", "result"])
async def test_both_buckets_can_have_a_ttl(what: str) -> None:
    ttls = {"args_ttl": timedelta(weeks=2), "result_ttl": timedelta(days=5)}
    ttl = ttls[f"{what}_ttl"]
    assert await lives(what, ttl - SECOND, **ttls)
    assert not await lives(what, ttl, **ttls)


@pytest.mark.parametrize("what", ["args", "result"])
async def test_a_ttl_of_none_never_expires(what: str) -> None:
    assert await lives(what, 10_000 * DAY, **{f"{what}_ttl": None})


async def test_by_default_arguments_have_no_ttl_and_results_one_day() -> None:
    assert await lives("args", 10_000 * DAY)
    assert await lives("result", DAY - SECOND)
    assert not await lives("result", DAY)


def chain(tmp_path: Path, **parts: str) -> subprocess.CompletedProcess[str]:
    """Run the chained jobs as a script, with in-memory brokers in place of Redis."""
    script = tmp_path / "chain.py"
    brokers = "InMemoryBucketBroker, InMemoryMessageBroker"
    script.write_text(CHAIN.format(brokers=brokers, message_broker="InMemoryMessageBroker()", **parts), "utf-8")
    return subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_jobs_are_chained_by_a_result_that_is_the_next_ones_arguments(tmp_path: Path) -> None:
    done = chain(
        tmp_path,
        preparation="args_and_results = InMemoryBucketBroker(use_result_bucket=True)\n",
        args_bucket_broker="args_and_results",
        results_bucket_broker="args_and_results",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['This is your first message!', 'Hello Alex!', 'Your id is 123.']\n"


async def test_a_chain_over_stores_that_share_nothing_fails_clearly() -> None:
    namespace: dict[str, Any] = {}
    source = CHAIN.format(
        brokers="InMemoryBucketBroker, InMemoryMessageBroker",
        preparation="",
        message_broker="InMemoryMessageBroker()",
        args_bucket_broker="InMemoryBucketBroker()",
        results_bucket_broker="InMemoryBucketBroker(use_result_bucket=True)",
    )
    await execute(source, namespace)
    async with magic(namespace["my_connection"]):
        first: Job[Any] = Job("add_hello", args={"user_name": "Alex", "user_id": 123, "messages": []}, result_id="chained_id")
        second: Job[Any] = Job("add_id", args_id="chained_id")
        await first.enqueue()
        assert (await work(namespace["my_router"])).succeeded == 1
        await second.enqueue()
        assert (await work(namespace["my_router"])).invalid == 1
        bucket = await second.result
        assert bucket is not None
        assert (bucket.success, bucket.exception) == (False, "ConversionError")
        async for message in Queue().get_messages(category=MessageCategory.DEAD):
            assert message.death is not None
            assert message.death.reason.value == "invalid"
            assert "the arguments are gone: there is no bucket 'chained_id'" in (message.death.error or "")
            break
