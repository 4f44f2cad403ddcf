"""When a message comes again. Pure functions: whoever calls them says what time it is.

A recurring message has a grid of times, an interval from an anchor on or a cron line in a time zone, and its next run is
the first point of the grid after the last one or after now, whichever is later: times that were missed run once.

Cron lines are read by cronsim (`pip install 'repid-core[cron]'`), which follows Debian's cron:

- Five fields: minute (0-59), hour (0-23), day of month (1-31), month (1-12 or JAN-DEC), day of week (0-7 or SUN-SAT;
  0 and 7 are Sunday); or six, with the second (0-59) before them. Names such as `@daily` are not read.
- In each `*`, `a`, `a-b`, `a,b`, and steps, `*/n`, `a-b/n` or `a/n` (from a on). Also `L` (last) and `LW` (last weekday)
  for the day of month, and `5L` (the last Friday) and `5#2` (the second) for the day of week.
- If day of month and day of week are both restricted, either is enough; if one begins with `*`, both must match.
- Where daylight saving begins, a line of five fields with a fixed minute and hour that falls in the gap runs at the
  gap's end; where it ends, a time that the clock shows twice runs at the first. All other lines (minute or hour begins
  with `*`, or there are seconds) follow the clock on the wall: nothing runs in the gap, and twice what it shows twice.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from attrs import evolve

from repid_core.data import Envelope, Recurrence
from repid_core.errors import ConfigError

_TICK, _MILLISECOND = timedelta(microseconds=1), timedelta(milliseconds=1)
_ANY_DAY = datetime(2024, 1, 1, tzinfo=UTC)


def aware(time: datetime) -> datetime:
    """The same time in UTC; a naive one is local time. Raises `ValueError` at the ends of the calendar."""
    try:
        return time.astimezone(UTC)
    except (OverflowError, OSError, ValueError) as error:
        raise ValueError(f"the time {time!r} is out of range: choose one in the years 2 to 9998") from error


def zone(name: str | None) -> tzinfo:
    """The time zone of an IANA name; None is UTC. Raises `ValueError`, with the remedy, if it is not known."""
    if name is None:
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, TypeError, AttributeError, OSError) as error:
        remedy = "use an IANA name such as 'Europe/Berlin', and where the system has no time zones, `pip install tzdata`"
        raise ValueError(f"time zone {name!r} is not known here: {remedy}") from error


def check_cron(line: str, timezone: str | None = None) -> None:
    """Check a cron line and its time zone's name; raises what `next_due` raises, also if the line's time never comes."""
    if not isinstance(line, str):
        raise ValueError(f"cron line {line!r} is not valid: give text such as '30 4 * * MON'")  # noqa: TRY004 — as documented
    next_due(Recurrence(cron=line, timezone=timezone), _ANY_DAY)


def next_due(recurrence: Recurrence, after: datetime) -> datetime:
    """The first time of the grid strictly after `after`, in UTC. Intervals never drift; see the module for cron.

    Raises:
        ValueError: The recurrence is not valid, or there is no such time; says what is wrong.
        ConfigError: It needs cronsim, which is not installed.
    """
    try:
        if recurrence.cron is not None:
            return _next_tick(recurrence.cron, zone(recurrence.timezone), after)
        if recurrence.interval is None or recurrence.interval <= timedelta(0):
            raise ValueError(f"interval {recurrence.interval!r} is not valid: give a positive one, or a cron line")
        past = (after - recurrence.anchor) // recurrence.interval
        return (recurrence.anchor + (past + 1) * recurrence.interval).astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{recurrence} has no time after {after}") from error


def _next_tick(line: str, timezone: tzinfo, after: datetime) -> datetime:
    try:
        from cronsim import CronSim, CronSimError  # noqa: PLC0415 — an extra
    except ImportError as error:
        raise ConfigError("cron lines are read by cronsim: `pip install 'repid-core[cron]'` here and on workers") from error
    try:
        ticks = CronSim(line, after.astimezone(timezone))
    except (CronSimError, ValueError) as error:
        raise ValueError(f"cron line {line!r} is not valid ({error}): see repid_core.schedule for the fields") from error
    for tick in ticks:
        if (due := tick.astimezone(UTC)) > after:  # in the second pass of a fold, cronsim gives the first pass again
            return due
    raise ValueError(f"cron line {line!r} is not valid: its time does not come within 50 years of {after}")


def first_due(
    *,
    now: datetime,
    deferred_until: datetime | None,
    deferred_by: timedelta | None,
    cron: str | None,
    timezone: str | None,
) -> tuple[datetime | None, Recurrence | None]:
    """When a new message is due, and when it comes again.

    With `deferred_until` alone, at that time. With `deferred_by`, at `now` plus that, or at `deferred_until`, which
    anchors the grid; with `cron`, at its first time after `now`, but not before `deferred_until`. If that has passed, a
    recurring message begins at the next time of its grid. Intervals are rounded up to whole milliseconds, as on the wire.
    Raises what `next_due` raises.
    """
    until = None if deferred_until is None else aware(deferred_until)
    if deferred_by is None and cron is None:
        return until, None
    if cron is not None:
        recurrence = Recurrence(cron=cron, timezone=timezone)
    else:
        interval = None if deferred_by is None else -(-deferred_by // _MILLISECOND) * _MILLISECOND
        recurrence = Recurrence(interval=interval, anchor=until or now)
    return next_due(recurrence, now if until is None else max(now, until - _TICK)), recurrence


def rescheduled(envelope: Envelope, due: datetime | None, now: datetime, *, tried: int = 0) -> Envelope:
    """The message, to be requeued: due then (None is at once), tried so often, its TTL counted anew."""
    parameters = evolve(envelope.parameters, tried=tried)
    expires_at = None if parameters.ttl is None or parameters.recurrence is not None else (due or now) + parameters.ttl
    return evolve(envelope, parameters=parameters, due=due, expires_at=expires_at)


def is_overdue(envelope: Envelope, now: datetime) -> bool:
    """Whether the message's TTL has passed since it was due; a recurring one then skips this run (M8)."""
    if envelope.expires_at is not None:
        return envelope.expires_at < now
    if (ttl := envelope.parameters.ttl) is None:
        return False
    return (envelope.due or envelope.parameters.timestamp) + ttl < now
