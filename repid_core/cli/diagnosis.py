"""`repid plugins` and `repid check`: what is installed, whether it works, and what to do if it does not."""

from __future__ import annotations

import asyncio
import platform
import sys
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click
from attrs import frozen

from repid_core import __version__
from repid_core.abc import Broker, BucketBroker, MessageBroker
from repid_core.cli import describe, targets
from repid_core.cli.group import DONE, PROBLEM, Command, Failure
from repid_core.cli.options import DURATION, app_option, config_option, emit, json_option, run
from repid_core.cli.tables import plural, table
from repid_core.config import load
from repid_core.connection import Connection
from repid_core.data import Envelope, Parameters, RoutingKey
from repid_core.errors import RepidError
from repid_core.plugins import PluginInfo
from repid_core.plugins import plugins as installed

_TOPIC: Final = "repid_check"
_AHEAD: Final = timedelta(seconds=1)  # how far clocks may differ: jobs are that much early or late


@click.command(
    "plugins",
    cls=Command,
    short_help="List plugins, and what is wrong with them.",
    examples=["repid plugins", "repid plugins --json"],
    shape=[
        {
            "distribution": "text",
            "version": "text",
            "module": "text",
            "offers": [{"kind": "text", "name": "text", "summary": "text", "url_schemes": ["text"]}],
            "commands": ["text"],
            "problem": "text or null",
        }
    ],
)
@json_option
def plugins(as_json: bool) -> None:
    """List the plugins that are installed, what they offer, and what is wrong with those that cannot be used.

    Exit status 1 if one cannot be used.
    """
    found = [_plugin(info) for info in reported()]
    if as_json:
        emit(found)
    else:
        said = None
        for plugin in found:
            if (who := f"{plugin['distribution']} {plugin['version']}") != said:
                click.secho(who, bold=True)
            said = who
            table(["", "", "", ""], [[" ", offer["kind"], offer["name"], offer["summary"]] for offer in plugin["offers"]])
            if plugin["commands"]:
                click.echo(f"  command  {', '.join(plugin['commands'])}")
            if plugin["problem"]:
                click.secho(f"  {plugin['problem']}", fg="red")
    sys.exit(PROBLEM if any(_is_broken(plugin["problem"]) for plugin in found) else DONE)


def reported() -> list[PluginInfo]:
    """All plugins, with what is wrong with them and with their commands."""
    installed().commands()
    return installed().report()


def _plugin(info: PluginInfo) -> dict[str, Any]:
    offers = [
        {"kind": str(kind), "name": backend.name, "summary": backend.summary, "url_schemes": list(backend.url_schemes)}
        for kind, backends in info.backends.items()
        for backend in backends
    ]
    return {
        "distribution": info.distribution,
        "version": info.version,
        "module": info.module,
        "offers": offers,
        "commands": list(info.commands),
        "problem": info.problem,
    }


def _is_broken(problem: str | None) -> bool:
    return problem is not None and not problem.startswith("left out by")


@frozen
class Finding:
    """One thing that was looked at.

    Attributes:
        what: The thing.
        ok: Whether it is as it should be.
        detail: What was seen; for a problem, what to do.
        ms: How long it took, if it was timed.
    """

    what: str
    ok: bool
    detail: str = ""
    ms: float | None = None

    def shape(self) -> Mapping[str, Any]:
        """As JSON."""
        return {"what": self.what, "ok": self.ok, "detail": self.detail, "ms": None if self.ms is None else round(self.ms, 1)}


@click.command(
    cls=Command,
    short_help="Check configuration, plugins and brokers.",
    examples=["repid check", "repid check --app app.main:app --timeout '30 s' --json"],
    shape={
        "ok": "true or false",
        "findings": [{"what": "text", "ok": "true or false", "detail": "text", "ms": "number or null"}],
    },
)
@click.option("--timeout", type=DURATION, default="10 s", show_default=True, help="The longest wait for one step.")
@json_option
@app_option
@config_option
def check(timeout: timedelta, as_json: bool, app: str | None, config: Path | None) -> None:
    """Check that this machine can run jobs: the configuration, the plugins, and each broker, by a real round trip.

    A job is sent through a queue of its own, repid_check_…, which is removed; a bucket is stored, read and deleted. Clocks are
    compared where the store tells its own.

    Exit status 1 if there is a problem. Each says what to do.
    """
    findings = run(lambda: _all(app, config, timeout.total_seconds(), (lambda _: None) if as_json else _print))
    problems = [finding for finding in findings if not finding.ok]
    if as_json:
        emit({"ok": not problems, "findings": [finding.shape() for finding in findings]})
    elif problems:
        click.secho(f"{plural(len(problems), 'problem')}.", fg="red", err=True)
    else:
        click.secho("All is well.", fg="green", err=True)
    sys.exit(PROBLEM if problems else DONE)


def _print(finding: Finding) -> None:
    mark = click.style("ok     ", fg="green") if finding.ok else click.style("PROBLEM", fg="red")
    time_ = "" if finding.ms is None else f"{finding.ms:,.1f} ms"
    first, *rest = finding.detail.splitlines() or [""]
    click.echo(f"{mark}  {finding.what:<33}  {time_:>12}  {first}".rstrip())
    for line in rest:
        click.echo(f"{'':58}{line}")


async def _all(app: str | None, config: Path | None, limit: float, tell: Callable[[Finding], None]) -> list[Finding]:
    findings = []
    async for finding in _findings(app, config, limit):
        findings.append(finding)
        tell(finding)
    return findings


async def _findings(app: str | None, config: Path | None, limit: float) -> AsyncIterator[Finding]:
    python = f"Python {platform.python_version()}, {platform.system()}"
    yield Finding("repid-core", ok=True, detail=f"{__version__}, {python}")
    for info in reported():
        if info.distribution != "repid-core" or info.problem:
            yield Finding(f"plugin {info.distribution}", ok=not _is_broken(info.problem), detail=_words(info))
    try:
        connection, source = _connection(app, config)
    except (RepidError, Failure) as error:
        yield Finding("configuration", ok=False, detail=str(error))
        return
    yield Finding("configuration", ok=True, detail=source)
    names: dict[int, list[str]] = {}
    brokers = describe.parts(connection)
    for role, broker in brokers.items():
        names.setdefault(id(broker), []).append(role)
    for roles in names.values():
        broker = brokers[roles[0]]
        async for finding in _broker(" and ".join(roles), broker, connection, limit):
            yield finding


def _connection(app: str | None, config: Path | None) -> tuple[Connection, str]:
    """The connection, and where it was found."""
    if app is not None:
        return targets.connection(app, config), f"--app {app}"
    configuration = load(config)
    return Connection(**configuration.parts()), configuration.source


def _words(info: PluginInfo) -> str:
    offers = [f"{kind} {backend.name}" for kind, backends in info.backends.items() for backend in backends]
    return f"{info.version}: {info.problem or ', '.join(offers) or 'offers no backends'}"


async def _broker(role: str, broker: Broker, connection: Connection, limit: float) -> AsyncIterator[Finding]:
    """Connect, make a round trip, compare clocks, disconnect."""
    where = describe.described(broker)
    begun = time.perf_counter()
    problem = await _trouble(broker.connect(), limit)
    if problem is not None:
        yield Finding(f"{role}: connect", ok=False, detail=f"{where}: {problem}")
        return
    yield Finding(f"{role}: connect", ok=True, detail=where, ms=_ms(begun))
    try:
        steps = _message_steps(broker) if isinstance(broker, MessageBroker) else _bucket_steps(broker)
        async with aclosing(steps):
            async for what, step in steps:
                begun = time.perf_counter()
                problem = await _trouble(step, limit)
                yield Finding(f"{role}: {what}", ok=problem is None, detail=problem or "", ms=_ms(begun))
                if problem is not None:
                    return
        async for finding in _clock(role, broker, connection, limit):
            yield finding
    finally:
        with suppress(Exception):
            await asyncio.wait_for(broker.disconnect(), limit)


async def _trouble(step: Awaitable[Any], limit: float) -> str | None:
    """What went wrong, in words; None if all went well."""
    try:
        async with asyncio.timeout(limit):
            await step
    except TimeoutError as error:
        return str(error) or f"no answer within {limit:g} s: see whether the server is overloaded, or give a longer --timeout"
    except RepidError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 — a plugin's own trouble is what is looked for
        return f"{type(error).__name__}: {error}: report it to the authors of the plugin"
    return None


Steps = AsyncGenerator[tuple[str, Awaitable[Any]], None]


async def _message_steps(broker: MessageBroker) -> Steps:
    queue = f"repid_check_{uuid.uuid4().hex[:12]}"
    key = RoutingKey(uuid.uuid4().hex, _TOPIC, queue)
    consumer = broker.consumer(queue, [_TOPIC], prefetch=1)

    async def receive() -> None:
        await consumer.start()
        [delivery] = await consumer.receive(1)
        if delivery.envelope.key != key:
            raise RepidError(f"another message came back: {delivery.envelope.key}")
        await delivery.ack()

    yield "ping", broker.ping()
    try:
        yield "declare a queue", broker.declare_queue(queue, [_TOPIC])
        yield "enqueue", broker.enqueue(Envelope(key, Parameters(datetime.now(UTC)), payload=b"1"))
        yield "receive and acknowledge", receive()
    finally:
        with suppress(Exception):
            await consumer.close()
        with suppress(Exception):
            await broker.delete_queue(queue)


async def _bucket_steps(broker: Broker) -> Steps:
    assert isinstance(broker, BucketBroker)  # noqa: S101
    id_, data = f"repid-check-{uuid.uuid4().hex}", b"repid check"

    async def get() -> None:
        if (found := await broker.get_bucket(id_)) != data:
            raise RepidError(f"the bucket came back as {found!r}: does another application use the same prefix?")

    yield "ping", broker.ping()
    yield "store a bucket", broker.store_bucket(id_, data, timedelta(minutes=1))
    yield "read it", get()
    yield "delete it", broker.delete_bucket(id_)


async def _clock(role: str, broker: Broker, connection: Connection, limit: float) -> AsyncIterator[Finding]:
    """Compare this machine's clock with the store's, taking off half of the way there and back."""
    told: list[datetime | None] = []

    async def ask() -> None:
        told.append(await broker.server_time())

    before = connection.clock.now()
    problem = await _trouble(ask(), limit)
    after = connection.clock.now()
    if problem is not None:
        yield Finding(f"{role}: clock", ok=False, detail=problem)
    elif told[0] is not None:
        ahead = told[0] - before - (after - before) / 2
        off = abs(ahead) > _AHEAD + (after - before) / 2
        way = "ahead of" if ahead > timedelta(0) else "behind"
        detail = f"the server is {abs(ahead) / timedelta(milliseconds=1):,.0f} ms {way} this machine"
        detail += ": delayed jobs come early or late by as much; let both take their time from NTP" if off else ""
        yield Finding(f"{role}: clock", ok=not off, detail=detail)


def _ms(begun: float) -> float:
    return (time.perf_counter() - begun) * 1000
