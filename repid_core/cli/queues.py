"""`repid queues` and `repid stats`: what there is, and how much of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Final

import click
from attrs import asdict

from repid_core.abc import MessageBroker
from repid_core.cli import targets
from repid_core.cli.group import USAGE, Command, Failure
from repid_core.cli.options import (
    DURATION,
    Connect,
    connection_options,
    emit,
    json_option,
    on_messages,
    queue_names,
    queues_option,
)
from repid_core.cli.tables import made, plural, table
from repid_core.connection import Connection
from repid_core.data import QueueStats
from repid_core.errors import RepidError

_STATES: Final = ("ready", "in_progress", "delayed", "dead")
_COUNT: Final = "number, or null where the broker cannot tell"
_COUNTS: Final = dict.fromkeys(_STATES, _COUNT)
_RATES: Final = dict.fromkeys(_STATES, "change per second since the last sample, or null")


@click.command(
    cls=Command,
    short_help="List queues.",
    examples=["repid queues", "repid queues app.tasks:router --json"],
    shape=[{"queue": "text", "in_broker": "true or false; null where the broker cannot list", "actors": ["text"]}],
)
@click.argument("routers", metavar="[MODULE:ATTRIBUTE]...", nargs=-1)
@json_option
@connection_options
def queues(routers: tuple[str, ...], connect: Connect, as_json: bool) -> None:
    """List queues: those that the broker knows of, and those of the routers that are named, with their actors."""
    actors: dict[str, set[str]] = {}
    for router in targets.routers(routers):
        for queue, topics in router.queues.items():
            actors.setdefault(queue, set()).update(topics)

    async def work(connection: Connection) -> set[str] | None:
        broker = connection.message_broker
        known = await broker.queue_names()
        if known is None and not actors:
            raise Failure(
                f"{type(broker).__name__} cannot list its queues: name routers, for example repid queues app.tasks:router", USAGE
            )
        return None if known is None else set(known)

    known = on_messages(connect, work)
    names = sorted({*actors, *(known or ())})
    rows = [
        {"queue": name, "in_broker": None if known is None else name in known, "actors": sorted(actors.get(name, ()))}
        for name in names
    ]
    if as_json:
        emit(rows)
        return
    words = {True: "yes", False: "no", None: None}
    table(
        ["queue", "in broker", "actors"],
        [[row["queue"], words[row["in_broker"]], ", ".join(row["actors"]) or None] for row in rows],
    )
    click.echo(f"{plural(len(rows), 'queue')}.", err=True)


@click.command(
    cls=Command,
    short_help="Count the messages of queues, once or live.",
    examples=["repid stats", "repid stats --queue mail --queue default --json", "repid stats --watch --interval 5s"],
    shape={"at": "ISO 8601", "queues": [{"queue": "text"} | _COUNTS | {"rates": _RATES}]},
)
@queues_option
@click.option("--watch", "-w", is_flag=True, help="Go on, with rates, until Ctrl-C. With --json, a line for each sample.")
@click.option("--interval", type=DURATION, default="2 s", show_default=True, help="Between two samples.")
@click.option("--samples", type=click.IntRange(1), help="With --watch: end after so many.")
@json_option
@connection_options
def stats(
    connect: Connect,
    queues: tuple[str, ...],
    watch: bool,
    interval: timedelta,
    samples: int | None,
    as_json: bool,
) -> None:
    """Count the messages of each queue: ready, in progress, delayed and dead.

    Rates are the change of a count per second: a queue whose ready grows by 10/s gets ten more than its workers take.
    """
    if interval <= timedelta(0):
        raise Failure("--interval: give a time that is longer than none", USAGE)
    number = (samples or 0) if watch else 1

    async def work(connection: Connection) -> None:
        await _show(connection.message_broker, queues, interval, number, as_json=as_json)

    try:
        on_messages(connect, work)
    except KeyboardInterrupt:
        if not watch:
            raise


async def _show(broker: MessageBroker, given: Sequence[str], interval: timedelta, samples: int, *, as_json: bool) -> None:
    """Show so many samples; 0 for as many as there is time for."""
    if as_json:
        before = None
        for number in _numbers(samples):
            if number:
                await asyncio.sleep(interval.total_seconds())
            before = await _sample(broker, given, before)
            emit(before.shape())
        return
    if samples == 1:
        sample = await _sample(broker, given, None)
        table(*sample.table())
        if not sample.counts:
            click.echo("No queues.", err=True)
        return
    await _live(broker, given, interval, samples)


def _numbers(samples: int) -> Iterable[int]:
    return range(samples) if samples else count()


async def _live(broker: MessageBroker, given: Sequence[str], interval: timedelta, samples: int) -> None:
    """A table that is written over again and again; a broker that is away is said, and waited for."""
    from rich.live import Live  # noqa: PLC0415 — for this alone

    sample: Sample | None = None
    trouble = None
    with Live(auto_refresh=False) as live:
        for _ in _numbers(samples):
            try:
                sample = await _sample(broker, given, sample)
                trouble = None
            except RepidError as error:
                trouble = f"{datetime.now().astimezone():%X}  {error}"
            if sample is not None:
                titles, rows = sample.table()
                caption = trouble or f"{sample.at.astimezone():%X}, every {interval.total_seconds():g} s; Ctrl-C ends"
                live.update(made(titles, rows, right=titles[1:], caption=caption), refresh=True)
            elif trouble is not None:
                raise Failure(trouble)
            with suppress(TimeoutError):
                await asyncio.sleep(interval.total_seconds())


class Sample:
    """The counts of one moment, and how they have changed.

    Attributes:
        at: When.
        clock: The same by the monotonic clock.
        counts: By queue.
        rates: The change per second, by queue and state.
    """

    def __init__(self, counts: Mapping[str, QueueStats], before: Sample | None) -> None:
        self.at, self.counts = datetime.now(UTC), counts
        self.clock = time.monotonic()
        passed = 0.0 if before is None else self.clock - before.clock
        self.rates: dict[str, dict[str, float | None]] = {}
        for queue, stats in counts.items():
            then = before.counts.get(queue) if before is not None else None
            self.rates[queue] = {state: _rate(then, stats, state, passed) for state in _STATES}
        self.has_rates = before is not None

    def shape(self) -> dict[str, Any]:
        """As JSON."""
        rows = [{"queue": queue, **asdict(stats), "rates": self.rates[queue]} for queue, stats in self.counts.items()]
        return {"at": self.at.isoformat(timespec="milliseconds"), "queues": rows}

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Titles and rows."""
        titles, rows = ["queue", "ready", "in progress", "delayed", "dead"], []
        for queue, stats in self.counts.items():
            cells = list(asdict(stats).values())
            if self.has_rates:
                cells = [_with_rate(count, self.rates[queue][state]) for count, state in zip(cells, _STATES, strict=True)]
            rows.append([queue, *cells])
        return titles, rows


async def _sample(broker: MessageBroker, given: Sequence[str], before: Sample | None) -> Sample:
    names = await queue_names(broker, given)
    counts = await asyncio.gather(*(broker.queue_stats(name) for name in names))
    return Sample(dict(zip(names, counts, strict=True)), before)


def _rate(then: QueueStats | None, now: QueueStats, state: str, passed: float) -> float | None:
    before, after = getattr(then, state, None), getattr(now, state)
    return None if before is None or after is None or passed <= 0 else round((after - before) / passed, 1)


def _with_rate(count: int | None, rate: float | None) -> str | None:
    if count is None:
        return None
    return f"{count:,}" + (f" ({rate:+,.1f}/s)" if rate else "")
