"""The reference of errors: every class has its entry, its texts are provoked, and what the code logs is in its tables."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from repid_core import (
    Connection,
    InMemoryBucketBroker,
    InMemoryMessageBroker,
    Job,
    Priority,
    Queue,
    Repid,
    Router,
    Worker,
    errors,
)
from repid_core.codec import decode_envelope, encode_envelope
from repid_core.plugins import Kind, plugins
from tests.integration.test_docs import ROOT

pytestmark = pytest.mark.examples

TEXT = (ROOT / "docs" / "reference" / "errors.md").read_text("utf-8")
CLASSES = [name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, BaseException)]
ENTRIES = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##)", TEXT, re.MULTILINE | re.DOTALL))
EXAMPLES = {name: found[1] for name, said in ENTRIES.items() if (found := re.search(r"(?s)```text\n(.*?)\n```", said))}

Provoke = Callable[[Connection], Awaitable[Any]]
PROVOKED: dict[str, Provoke] = {}


def provokes(fn: Provoke) -> Provoke:
    """A function that raises the error that its name says, on a connection in memory that is open and bound."""
    PROVOKED["".join(word.capitalize() for word in fn.__name__.split("_")) + "Error"] = fn
    return fn


class Plain(InMemoryMessageBroker):
    capabilities = frozenset()


class Silent(InMemoryMessageBroker):
    async def enqueue(self, envelope: Any) -> Any:
        raise errors.EnqueueError("the server did not confirm the message; it may have been enqueued", maybe_enqueued=True)


def resize() -> None:
    """An actor whose process dies."""
    os._exit(1)


async def greet(user_id: int, name: str) -> None: ...


@provokes
async def usage(connection: Connection) -> None:
    await Job("greet").wait()


@provokes
async def no_connection(connection: Connection) -> None:
    await asyncio.to_thread(lambda: asyncio.run(Job("greet").enqueue()))


@provokes
async def not_connected(connection: Connection) -> None:
    await Job("greet", connection=Connection(InMemoryMessageBroker())).enqueue()


@provokes
async def already_connected(connection: Connection) -> None:
    await connection.connect()


@provokes
async def wrong_event_loop(connection: Connection) -> None:
    await asyncio.to_thread(lambda: asyncio.run(Job("greet", connection=connection).enqueue()))


@provokes
async def already_settled(connection: Connection) -> None:
    await Job("greet").enqueue()
    async for message in Queue("default").get_messages():
        await message.ack()
        await message.ack()


@provokes
async def invalid_job(connection: Connection) -> None:
    Job("greet", retries=-1)


@provokes
async def invalid_actor(connection: Connection) -> None:
    def count(to: int) -> Iterator[int]:
        yield from range(to)

    count.__module__, count.__qualname__ = "app", "count"
    Router().actor(count)


@provokes
async def config(connection: Connection) -> None:
    Connection.from_config("missing.toml", environ={})


@provokes
async def unknown_backend(connection: Connection) -> None:
    plugins().build(Kind.SERIALIZER, "jason")


@provokes
async def plugin_load(connection: Connection) -> None:
    found: Any = plugins().backend(Kind.SERIALIZER, "json")
    plugins().build(Kind.CONVERTER, found)


@provokes
async def settings(connection: Connection) -> None:
    Connection.from_config({"message_broker": {"backend": "memory", "lease": "soon", "max_paylod": "1 MiB"}}, environ={})


@provokes
async def unsupported_feature(connection: Connection) -> None:
    async with Connection(Plain()) as plain:
        await Job("greet", priority=Priority.HIGH, connection=plain).enqueue()


@provokes
async def broker_connection(connection: Connection) -> None:
    from repid_sqlite import SqliteMessageBroker

    await SqliteMessageBroker("missing/jobs.db").connect()


@provokes
async def delivery_lost(connection: Connection) -> None:
    broker, lost = InMemoryMessageBroker(lease=timedelta(milliseconds=1)), asyncio.Event()
    async with Connection(broker) as short:
        await Job("greet", connection=short).enqueue()
        consumer = broker.consumer("default", None, prefetch=1)
        await consumer.start()
        [delivery] = await consumer.receive(1)
        delivery.on_lost(lost.set)
        broker.kill(consumer)
        await lost.wait()
        await delivery.ack()


@provokes
async def enqueue(connection: Connection) -> None:
    async with Connection(Silent()) as silent:
        await Job("greet", connection=silent).enqueue()


@provokes
async def duplicate_job(connection: Connection) -> None:
    await Job("greet", id_="order-17").enqueue()
    await Job("greet", id_="order-17").enqueue()


@provokes
async def enqueue_many(connection: Connection) -> None:
    await connection.enqueue_many([Job("greet", id_="order-17"), Job("greet", id_="order-17")])


@provokes
async def payload_too_large(connection: Connection) -> None:
    async with Connection(InMemoryMessageBroker(max_payload=1000)) as small:
        await Job("greet", args=["x" * 2000], connection=small).enqueue()


@provokes
async def bucket_connection(connection: Connection) -> None:
    from repid_sqlite import SqliteBucketBroker

    await SqliteBucketBroker("missing/jobs.db").connect()


@provokes
async def corrupt_bucket(connection: Connection) -> None:
    assert connection.results_bucket_broker is not None
    await connection.results_bucket_broker.store_bucket("note", b"hello", None)
    await Job("greet", result_id="note").result


@provokes
async def corrupt_message(connection: Connection) -> None:
    decode_envelope(b"hello")


@provokes
async def newer_format(connection: Connection) -> None:
    data = encode_envelope(Job("greet").draft(connection).envelope)
    decode_envelope(data[:3] + b"\x02" + data[4:])


@provokes
async def serialization(connection: Connection) -> None:
    await Job("greet", args={"when": object()}).enqueue()


@provokes
async def conversion(connection: Connection) -> None:
    Router().actor(greet)
    Job.of(greet)("one")  # type: ignore[call-arg, arg-type]


@provokes
async def actor_process(connection: Connection) -> None:
    router = Router()
    router.actor(run_in_process=True)(resize)
    caught: list[BaseException] = []
    connection.middleware.add(Catching(caught))
    await Job("resize").enqueue()
    await Worker([router], messages_limit=1, processes=1, handle_signals=()).run()
    raise caught[0]


class Catching:
    """Keeps what actors raise."""

    def __init__(self, caught: list[BaseException]) -> None:
        self.caught = caught

    def after_actor_run(self, error: BaseException) -> None:
        self.caught.append(error)


@provokes
async def job_failed(connection: Connection) -> None:
    job = Job("greet")
    await job.enqueue()
    await job.cancel()
    await job.wait()


@provokes
async def result_timeout(connection: Connection) -> None:
    await Job("greet").wait(timeout=timedelta(0))


@pytest.mark.parametrize("name", EXAMPLES)
async def test_the_texts_are_real(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    buckets = InMemoryBucketBroker() if name != "UsageError" else None
    connection = Connection(InMemoryMessageBroker(), buckets, buckets)
    async with Repid(connection).magic(auto_disconnect=True):
        with pytest.raises(getattr(errors, name)) as caught:
            await PROVOKED[name](connection)
    assert type(caught.value) is getattr(errors, name)
    assert str(caught.value).replace(f"{__name__}.", "app.") == EXAMPLES[name]


def test_every_class_has_its_entry() -> None:
    assert sorted(CLASSES) == sorted(ENTRIES)
    assert set(EXAMPLES) == set(PROVOKED)


def test_the_tree_is_that_of_the_module() -> None:
    tree = inspect.cleandoc(errors.__doc__ or "").partition("::\n\n")[2].partition("\n\n")[0]
    assert f"```text\n{inspect.cleandoc(tree)}\n```" in TEXT


def test_plugins_have_no_error_classes_of_their_own() -> None:
    found = [package.name for package in packages() if package.name != "repid_core"]
    assert len(found) > 1
    for module in map(import_module, found):
        public = (getattr(module, name) for name in module.__all__)
        assert not [kind for kind in public if inspect.isclass(kind) and issubclass(kind, BaseException)]


def packages() -> Iterator[Path]:
    """Where core and the plugins are installed."""
    names = ["repid_core", *(info.module for info in plugins().report() if info.distribution != "repid-core")]
    for name in dict.fromkeys(name.partition(".")[0] for name in names if name.startswith("repid_")):
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        yield Path(spec.origin).parent


def logged(source: str) -> Iterator[tuple[str, str]]:
    """The texts that a module logs at WARNING and above, with the letter of the level."""
    for fn in ast.walk(ast.parse(source)):
        if not isinstance(fn, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        assigned = {
            target.id: node.value
            for node in ast.walk(fn)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for call in ast.walk(fn):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and is_log(call.func):
                text: ast.expr | None = call.args[call.func.attr == "log"]
                if isinstance(text, ast.Name):
                    text = assigned.get(text.id)
                if isinstance(text, ast.Constant):  # else it is handed on, and comes from a call that is looked at
                    letter = "W" if call.func.attr in {"warning", "_complain"} else "E"
                    yield re.sub(r"%[-.\d]*[a-z]", "…", str(text.value)), letter


def is_log(call: ast.Attribute) -> bool:
    if call.attr == "_complain":
        return True
    return (
        isinstance(call.value, ast.Name) and "logger" in call.value.id and call.attr in {"warning", "error", "exception", "log"}
    )


# Logged as they are raised or explained elsewhere: what the page says instead of "…".
ELSEWHERE = {
    ("lifecycle.py", "…"): "lifecycle rules … of bucket … are not what they were before repid-s3 added its own: "
    'look at them, and set lifecycle="check"',
    ("database.py", "…"): "… cannot be used (…): …",
}


def test_what_is_logged_is_in_the_tables() -> None:
    log = TEXT.partition("\n## In the log\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`+)(.+?)\1 \| ([WE]) \| .+ \|$", log, re.MULTILINE)
    documented = Counter((text.strip(), letter) for _, text, letter in rows)
    real = {
        (ELSEWHERE.get((file.name, text), text), letter)
        for package in packages()
        for file in package.rglob("*.py")
        if "testing" not in file.relative_to(package).parts
        for text, letter in logged(file.read_text("utf-8"))
    }
    assert {each for each in documented if documented[each] > 1} == set()
    assert set(documented) - real == set(), "the page has what nothing logs"
    assert real - set(documented) == set(), "the page lacks what is logged"
