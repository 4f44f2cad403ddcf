"""`repid dead`: look at dead jobs, retry them, and remove them."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

from repid_core.cli import redrive
from repid_core.cli.group import DONE, INTERRUPTED, NOTHING, PROBLEM, Command, Failure, LazyGroup
from repid_core.cli.options import (
    DURATION,
    Connect,
    connection_options,
    emit,
    json_option,
    on_connection,
    on_messages,
    queue_names,
    queues_option,
)
from repid_core.cli.redrive import Tally, Wanted
from repid_core.cli.tables import Bar, plural, table
from repid_core.connection import Connection
from repid_core.data import Capability, Death, Envelope, MessageCategory
from repid_core.errors import CodecError, RepidError
from repid_core.message import Message, envelope_of

_ROW: Final = {
    "queue": "text",
    "id": "text",
    "actor": "text",
    "reason": "failed, expired, poison, nacked or invalid; null if unknown",
    "at": "ISO 8601 or null",
    "attempts": "number",
    "error": "the last line of its text, or null",
}
_MEANT: Final = {"queue": "text", "matching": "number, or null where the broker cannot list", "dry_run": "true or false"}
_LEFT: Final = {
    "live": "number",
    "unreadable": "number",
    "lost": "number",
    "interrupted": "true or false",
    "left": "number or null",
}
_HAND: Final = 1000  # messages that are looked at where a broker cannot list

dead = LazyGroup(
    "dead",
    short_help="See to dead jobs: list, show, retry, purge.",
    help="See to dead jobs: those that failed for the last time, expired, or could not be run.",
    commands_by_name={
        "list": "repid_core.cli.dead:list_",
        "show": "repid_core.cli.dead:show",
        "retry": "repid_core.cli.dead:retry",
        "purge": "repid_core.cli.dead:purge",
    },
)


def _which(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which dead jobs are meant."""
    topic = click.option("--topic", "-t", "topics", multiple=True, help="Only of this actor; may be given several times.")
    older = click.option("--older-than", type=DURATION, help="Only those that died longer ago than this: '1 h', '7 days'.")
    return queues_option(topic(older(command)))


def _wanted(topics: Sequence[str], older_than: timedelta | None) -> Wanted:
    return Wanted(frozenset(topics), None if older_than is None else datetime.now(UTC) - older_than)


@click.command(
    "list",
    cls=Command,
    examples=[
        "repid dead list --queue mail",
        "repid dead list --queue mail --topic greet --older-than '1 h' --limit 1000 --json",
    ],
    shape=[_ROW],
)
@_which
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="The most of a queue.")
@json_option
@connection_options
def list_(
    connect: Connect,
    queues: tuple[str, ...],
    topics: tuple[str, ...],
    older_than: timedelta | None,
    limit: int,
    as_json: bool,
) -> None:
    """List dead jobs, oldest first. With --json, one object on each line, as they are found."""
    wanted = _wanted(topics, older_than)

    async def work(connection: Connection) -> None:
        rows: list[dict[str, Any]] = []
        for queue in await queue_names(connection.message_broker, queues):
            number = 0
            async for envelope, death in _seen(connection, queue, wanted):
                row = _row(queue, envelope, death)
                if as_json:
                    emit(row)
                else:
                    rows.append(row)
                if (number := number + 1) == limit:
                    break
        if not as_json:
            table(["queue", "id", "actor", "reason", "died", "attempts", "error"], [list(row.values()) for row in rows])
            click.echo(f"{plural(len(rows), 'dead job')}.", err=True)

    on_messages(connect, work)


@click.command(
    "show",
    cls=Command,
    examples=["repid dead show --queue mail 1f0c7b2e-5d0a-4c57-9d0e-1d7d1f6f3a11"],
    shape=_ROW
    | {
        "error": "the whole text, or null",
        "enqueued": "ISO 8601",
        "priority": "low, medium or high",
        "retries": "number",
        "headers": "object of text",
        "args_id": "text or null",
        "result_id": "text or null",
        "arguments": "what the actor gets; only with --arguments",
    },
)
@click.argument("id_", metavar="ID")
@queues_option
@click.option("--arguments", is_flag=True, help="Show the arguments too, which may be confidential.")
@json_option
@connection_options
def show(id_: str, connect: Connect, queues: tuple[str, ...], arguments: bool, as_json: bool) -> None:
    """Show a dead job: how it died, with the traceback, and how it was to be run. Exit status 3 if there is none of this id."""

    async def work(connection: Connection) -> dict[str, Any]:
        for queue in await queue_names(connection.message_broker, queues):
            async for envelope, death in _seen(connection, queue, Wanted()):
                if envelope is not None and envelope.key.id_ == id_:
                    found = _details(queue, envelope, death)
                    if arguments:
                        found["arguments"] = await connection.payloads.load_args(envelope)
                    return found
        raise Failure(f"no dead job has id {id_!r}: repid dead list shows which there are", NOTHING)

    found = on_connection(connect, work) if arguments else on_messages(connect, work)
    if as_json:
        emit(found)
        return
    error = found.pop("error")
    for name, value in found.items():
        click.echo(f"{name:<10} {value}")
    if error:
        click.echo(f"\n{error.rstrip()}")


@click.command(
    "retry",
    cls=Command,
    examples=[
        "repid dead retry --queue mail --dry-run",
        "repid dead retry --queue mail --topic greet --older-than '10 min'",
        "repid dead retry --queue mail --json",
    ],
    shape=[_MEANT | {"retried": "number"} | _LEFT],
)
@_which
@click.option("--dry-run", is_flag=True, help="Count, and change nothing.")
@json_option
@connection_options
def retry(connect: Connect, **options: Any) -> None:
    """Put dead jobs back into their queues, with all their attempts before them.

    They stream, and memory does not grow with their number. Ctrl-C ends after the jobs in hand; nothing is lost, even by
    kill -9, and the same command goes on where the last one ended. Those that die again meanwhile are left.

    Exit status: 0 if all were retried, 1 if some were left or it failed, 130 if it was interrupted.
    """
    _for_each(connect, Message.reschedule, "retried", **options)


@click.command(
    "purge",
    cls=Command,
    examples=["repid dead purge --queue mail --older-than '30 days' --dry-run", "repid dead purge --queue mail --yes"],
    shape=[_MEANT | {"purged": "number"} | _LEFT],
)
@_which
@click.option("--dry-run", is_flag=True, help="Count, and change nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
@connection_options
def purge(connect: Connect, yes: bool, dry_run: bool, **options: Any) -> None:
    """Remove dead jobs for good, and the arguments that belong to them.

    Exit status: 0 if all were removed, 1 if some were left or it failed, 130 if it was interrupted.
    """
    if not (yes or dry_run):
        where = ", ".join(options["queues"]) or "all queues"
        click.confirm(f"Remove dead jobs of {where} for good?", abort=True, err=True)
    _for_each(connect, Message.ack, "purged", dry_run=dry_run, **options)


def _for_each(
    connect: Connect,
    settle: Callable[[Message], Awaitable[None]],
    verb: str,
    *,
    queues: tuple[str, ...],
    topics: tuple[str, ...],
    older_than: timedelta | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    wanted = _wanted(topics, older_than)

    async def work(connection: Connection) -> int:
        status = DONE
        with _interruptible() as stop:
            for queue in await queue_names(connection.message_broker, queues):
                matching = await redrive.count(connection, queue, wanted)
                if dry_run:
                    _told_dry(queue, matching, verb, as_json=as_json)
                    continue
                tally = await _with_bar(connection, queue, wanted, settle, verb, matching, stop)
                left = (await connection.message_broker.queue_stats(queue)).dead
                facts = {
                    "live": tally.live,
                    "unreadable": tally.unreadable,
                    "lost": tally.lost,
                    "interrupted": stop.is_set(),
                    "left": left,
                }
                if as_json:
                    emit({"queue": queue, "matching": matching, "dry_run": False, verb: tally.done} | facts)
                else:
                    _told(queue, tally, verb, left)
                if not tally.is_whole:
                    status = PROBLEM
                if stop.is_set():
                    click.echo("Interrupted: nothing is lost, and the same command goes on from here.", err=True)
                    return INTERRUPTED
        return status

    # A retry needs the message broker alone; what is removed may have arguments in a store.
    sys.exit(on_messages(connect, work) if verb == "retried" or dry_run else on_connection(connect, work))


async def _with_bar(
    connection: Connection,
    queue: str,
    wanted: Wanted,
    settle: Callable[[Message], Awaitable[None]],
    verb: str,
    matching: int | None,
    stop: asyncio.Event,
) -> Tally:
    told = Tally()

    def progress(tally: Tally) -> None:
        nonlocal told
        told = tally
        bar.update(tally.done)

    with Bar(f"{queue}: {verb}", matching) as bar:
        try:
            return await redrive.each(connection, queue, wanted, settle, most=matching, stop=stop, progress=progress)
        except RepidError as error:
            raise Failure(
                f"{queue}: {plural(told.done, 'job')} {verb}, then: {error}; the same command goes on from here"
            ) from error


def _told_dry(queue: str, matching: int | None, verb: str, *, as_json: bool) -> None:
    if as_json:
        emit({"queue": queue, "matching": matching, "dry_run": True, verb: 0, "live": 0, "unreadable": 0, "lost": 0,
              "interrupted": False, "left": None})  # fmt: skip
    elif matching is None:
        click.echo(f"{queue}: the broker cannot list dead jobs, so those that match are not counted before they are {verb}")
    else:
        click.echo(f"{queue}: {plural(matching, 'dead job')} would be {verb}")


def _told(queue: str, tally: Tally, verb: str, left: int | None) -> None:
    click.echo(f"{queue}: {plural(tally.done, 'dead job')} {verb}" + ("" if left is None else f", {left:,} left"))
    for number, why in (
        (tally.live, "left, for a live job has the same id: wait for that one, or purge these"),
        (tally.unreadable, "left, for they cannot be read: written by a newer repid, or damaged"),
        (tally.lost, "left, for the lease was lost on the way: run the command again"),
    ):
        if number:
            click.echo(f"  {number:,} {why}", err=True)
    if tally.full and not tally.younger:
        click.echo("  so many are left that the others cannot be reached: purge them, or see to the live ones first", err=True)


@contextmanager
def _interruptible() -> Iterator[asyncio.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a second one acts as it does elsewhere."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    caught: list[signal.Signals] = []

    def heed() -> None:
        stop.set()
        release()

    def release() -> None:
        while caught:
            loop.remove_signal_handler(caught.pop())
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with suppress(NotImplementedError, RuntimeError, ValueError):  # not on Windows, nor in a thread
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, heed)
            caught.append(number)
    try:
        yield stop
    finally:
        if caught:
            release()


async def _seen(connection: Connection, queue: str, wanted: Wanted) -> AsyncIterator[tuple[Envelope | None, Death | None]]:
    """Dead messages of a queue, oldest first; None for a message that cannot be read."""
    broker, seen = connection.message_broker, 0
    if Capability.BROWSE in broker.capabilities:
        try:
            async for browsed in broker.browse(queue, MessageCategory.DEAD, limit=1 << 62):
                seen += 1
                if wanted.fits(browsed):
                    yield browsed.envelope, browsed.death
        except CodecError:  # of the next one; those in hand can be told one by one
            pass
        else:
            return
    for delivery in (await redrive.held(connection, queue, _HAND))[seen:]:
        envelope = envelope_of(delivery)
        if wanted.died_in_time(delivery.death) and (
            not wanted.topics or (envelope is not None and envelope.key.topic in wanted.topics)
        ):
            yield envelope, delivery.death


def _row(queue: str, envelope: Envelope | None, death: Death | None) -> dict[str, Any]:
    error = (death.error or "").strip() if death else ""
    return {
        "queue": queue,
        "id": envelope.key.id_ if envelope else "?",
        "actor": envelope.key.topic if envelope else "?",
        "reason": death.reason.value if death else None,
        "at": death.at.isoformat(timespec="seconds") if death else None,
        "attempts": death.attempts if death else 0,
        "error": error.splitlines()[-1] if error else None,
    }


def _details(queue: str, envelope: Envelope, death: Death | None) -> dict[str, Any]:
    parameters = envelope.parameters
    return _row(queue, envelope, death) | {
        "error": death.error if death else None,
        "enqueued": parameters.timestamp.isoformat(timespec="seconds"),
        "priority": envelope.key.priority.name.lower(),
        "retries": parameters.retries,
        "headers": dict(envelope.headers),
        "args_id": envelope.args_id,
        "result_id": parameters.result_id,
    }
