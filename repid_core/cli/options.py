"""What several commands share: options, durations, and how to run something on a connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from repid_core.abc import Broker, MessageBroker
from repid_core.app import Repid
from repid_core.cli import targets
from repid_core.cli.group import USAGE, Failure
from repid_core.connection import Connection, finish
from repid_core.data import check_name
from repid_core.settings import duration

T = TypeVar("T")
B = TypeVar("B", bound=Broker)


class Duration(click.ParamType[timedelta]):
    """A duration as people write it."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        try:
            return duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class QueueName(click.ParamType[str]):
    """The name of a queue."""

    name = "queue"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return check_name(value, "queue name")
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION, QUEUE = Duration(), QueueName()

app_option = click.option(
    "--app",
    metavar="MODULE:ATTRIBUTE",
    envvar="REPID_APP",
    help="A Connection or Repid of your code, or a function that gives one, in place of the configuration.",
)
config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file of the configuration; by default REPID_CONFIG, repid.toml, or [tool.repid] of pyproject.toml.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
queues_option = click.option(
    "--queue", "-q", "queues", type=QUEUE, multiple=True, help="Only this queue; may be given several times."
)


def connection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function `connect`, which makes the connection that `--app` or `--config` says, in place of these two."""

    @wraps(command)
    def call(app: str | None, config: Path | None, **options: Any) -> Any:
        return command(connect=lambda: targets.connection(app, config), **options)

    return app_option(config_option(call))


Connect = Callable[[], Connection]


def on_connection(connect: Connect, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Connect, do the work on it, and disconnect."""

    async def main() -> T:
        async with Repid(connect()).magic(auto_disconnect=True) as connection:
            return await work(connection)

    return run(main)


def on_broker(connect: Connect, pick: Callable[[Connection], B], work: Callable[[Connection, B], Awaitable[T]]) -> T:
    """Connect one of a connection's brokers alone, so that the others may be away, and do the work on it."""

    async def main() -> T:
        connection = connect()
        broker = pick(connection)
        broker.clock = connection.clock
        await broker.connect()
        try:
            return await work(connection, broker)
        finally:
            await finish(broker.disconnect())

    return run(main)


def on_messages(connect: Connect, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Connect the message broker alone, and do the work."""

    async def only(connection: Connection, _: MessageBroker) -> T:
        return await work(connection)

    return on_broker(connect, lambda connection: connection.message_broker, only)


def run(main: Callable[[], Coroutine[Any, Any, T]], loop: str = "asyncio") -> T:
    """Run on a new event loop, uvloop's if it is to be.

    Args:
        main: What to run.
        loop: "asyncio", "uvloop", or "auto" for uvloop where it is installed.
    """
    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        return runner.run(main())


def loop_factory(loop: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the event loop; None for asyncio's own."""
    if loop == "asyncio":
        return None
    try:
        import uvloop  # noqa: PLC0415 — optional
    except ImportError:
        if loop == "auto":
            return None
        raise Failure("--loop uvloop: uvloop is not installed: pip install uvloop", USAGE) from None
    made: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return made


async def queue_names(broker: MessageBroker, given: Sequence[str]) -> list[str]:
    """The queues that are meant: those given, else all that the broker knows of.

    Raises:
        Failure: None is given, and the broker cannot tell.
    """
    if given:
        return list(dict.fromkeys(given))
    known = await broker.queue_names()
    if known is None:
        raise Failure(f"{type(broker).__name__} cannot list its queues: name them, with --queue", USAGE)
    return sorted(known)


def emit(value: Any) -> None:
    """Print JSON on one line."""
    click.echo(json.dumps(value, ensure_ascii=False, default=str))
