"""When a message comes again."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from itertools import islice, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from repid_core.data import Envelope, Parameters, Recurrence, RoutingKey
from repid_core.errors import ConfigError
from repid_core.schedule import aware, check_cron, first_due, is_overdue, next_due, rescheduled, zone

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"


def cron(line: str, zone_name: str | None = None) -> Recurrence:
    return Recurrence(cron=line, timezone=zone_name)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def runs(recurrence: Recurrence, after: datetime) -> Iterator[datetime]:
    """What a worker does that is always in time."""
    while True:
        yield (after := next_due(recurrence, after))


def local_runs(line: str, zone_name: str, after: str, count: int) -> list[str]:
    """The next runs as the clock on the wall of the zone shows them, with the offset from UTC."""
    place = ZoneInfo(zone_name)
    start = datetime.fromisoformat(after).replace(tzinfo=place)
    found = islice(runs(cron(line, zone_name), start.astimezone(UTC)), count)
    return [due.astimezone(place).strftime("%m-%d %H:%M %z") for due in found]


class TestInterval:
    def test_on_a_point_of_the_grid_the_next_one_comes(self) -> None:
        every = Recurrence(interval=MINUTE, anchor=NOW)
        assert next_due(every, NOW) == NOW + MINUTE
        assert next_due(every, NOW + MINUTE - timedelta(microseconds=1)) == NOW + MINUTE
        assert next_due(every, NOW + MINUTE) == NOW + 2 * MINUTE

    def test_missed_times_run_once(self) -> None:
        every = Recurrence(interval=MINUTE, anchor=NOW)
        assert next_due(every, NOW + 100 * MINUTE + SECOND) == NOW + 101 * MINUTE

    def test_a_slow_worker_does_not_move_the_grid(self) -> None:
        every = Recurrence(interval=MINUTE, anchor=NOW)
        due = NOW
        for _ in range(10_000):
            due = next_due(every, due + timedelta(seconds=7, microseconds=123_457))
        assert due == NOW + 10_000 * MINUTE

    @given(
        interval=st.timedeltas(timedelta(milliseconds=1), timedelta(days=400)),
        count=st.integers(-10_000, 10_000),
        late=st.floats(0, 0.999),
    )
    def test_it_is_exact_over_ten_thousand_intervals(self, interval: timedelta, count: int, late: float) -> None:
        start = datetime(2025, 6, 1, tzinfo=UTC)
        interval = min(interval, timedelta(days=73))  # 10,000 times 73 days are 2,000 years
        due = next_due(Recurrence(interval=interval, anchor=start), start + count * interval + late * interval)
        assert due == start + (count + 1) * interval

    def test_a_grid_in_another_zone_gives_utc(self) -> None:
        anchor = datetime(2030, 1, 1, 14, tzinfo=timezone(2 * HOUR))
        due = next_due(Recurrence(interval=HOUR, anchor=anchor), NOW)
        assert due == NOW + HOUR
        assert due.tzinfo is UTC

    @pytest.mark.parametrize("interval", [None, timedelta(0), -SECOND])
    def test_no_interval_is_an_error(self, interval: timedelta | None) -> None:
        with pytest.raises(ValueError, match="is not valid: give a positive one, or a cron line"):
            next_due(Recurrence(interval=interval), NOW)

    def test_the_end_of_the_calendar_is_a_defined_error(self) -> None:
        with pytest.raises(ValueError, match="has no time after"):
            next_due(Recurrence(interval=timedelta(days=36525), anchor=NOW), datetime(9950, 1, 1, tzinfo=UTC))


class TestCron:
    def test_on_a_point_of_the_grid_the_next_one_comes(self) -> None:
        assert next_due(cron("0 12 * * *"), NOW) == NOW + DAY
        assert next_due(cron("0 12 * * *"), NOW - timedelta(microseconds=1)) == NOW
        assert next_due(cron("0 12 * * *"), NOW + timedelta(microseconds=1)) == NOW + DAY

    def test_missed_times_run_once(self) -> None:
        assert next_due(cron("*/5 * * * *"), NOW + timedelta(hours=3, minutes=2)) == NOW + timedelta(hours=3, minutes=5)

    def test_six_fields_begin_with_the_second(self) -> None:
        assert next_due(cron("*/15 * * * * *"), NOW) == NOW + 15 * SECOND

    def test_it_is_read_in_its_zone_and_given_in_utc(self) -> None:
        due = next_due(cron("0 9 * * *", BERLIN), NOW)
        assert due == utc("2030-01-02 08:00")
        assert due.tzinfo is UTC

    def test_without_a_zone_it_is_read_in_utc(self) -> None:
        assert next_due(cron("0 9 * * *"), NOW) == utc("2030-01-02 09:00")

    def test_a_leap_day_waits_for_a_leap_year(self) -> None:
        assert next_due(cron("0 0 29 2 *"), NOW) == utc("2032-02-29 00:00")
        assert next_due(cron("0 0 29 2 *"), utc("2096-03-01")) == utc("2104-02-29 00:00")

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("30 4 * * MON", "2030-01-07 04:30"),
            ("0 0 L * *", "2030-01-31 00:00"),
            ("0 0 LW * *", "2030-01-31 00:00"),
            ("0 0 * * 5L", "2030-01-25 00:00"),
            ("0 0 * * 5#2", "2030-01-11 00:00"),
            ("0 0 15 * FRI", "2030-01-04 00:00"),  # either is enough
            ("0 0 */2 * FRI", "2030-01-11 00:00"),  # both must match
            ("0 22-23/1 * JAN sun,sat", "2030-01-05 22:00"),
            ("5/20 * * * *", "2030-01-01 12:05"),
        ],
    )
    def test_the_syntax_that_is_documented(self, line: str, expected: str) -> None:
        check_cron(line)
        assert next_due(cron(line), NOW) == utc(expected)


class TestDaylightSaving:
    """In 2030. Berlin: 31 March 02:00 to 03:00, 27 October 03:00 to 02:00. New York: 10 March, 3 November 02:00 to 01:00."""

    def test_a_time_in_the_gap_runs_at_its_end(self) -> None:
        expected = ["03-30 02:30 +0100", "03-31 03:00 +0200", "04-01 02:30 +0200"]
        assert local_runs("30 2 * * *", BERLIN, "2030-03-29 12:00", 3) == expected
        expected = ["03-09 02:30 -0500", "03-10 03:00 -0400", "03-11 02:30 -0400"]
        assert local_runs("30 2 * * *", NEW_YORK, "2030-03-08 12:00", 3) == expected

    def test_several_times_in_the_gap_run_once(self) -> None:
        assert local_runs("0,20,40 2 * * *", BERLIN, "2030-03-31 00:00", 2) == ["03-31 03:00 +0200", "04-01 02:00 +0200"]

    def test_a_time_that_is_shown_twice_runs_at_the_first(self) -> None:
        expected = ["10-26 02:30 +0200", "10-27 02:30 +0200", "10-28 02:30 +0100"]
        assert local_runs("30 2 * * *", BERLIN, "2030-10-25 12:00", 3) == expected
        expected = ["11-02 01:30 -0400", "11-03 01:30 -0400", "11-04 01:30 -0500"]
        assert local_runs("30 1 * * *", NEW_YORK, "2030-11-01 12:00", 3) == expected

    def test_from_inside_the_second_pass_nothing_comes_that_was_before(self) -> None:
        """cronsim alone would give the first pass's 02:30, forty minutes ago."""
        second_pass = utc("2030-10-27 01:10")  # 02:10 for the second time
        assert next_due(cron("30 2 * * *", BERLIN), second_pass) == utc("2030-10-28 01:30")

    def test_every_half_hour_follows_the_clock_on_the_wall(self) -> None:
        expected = ["10-27 02:00 +0200", "10-27 02:30 +0200", "10-27 02:00 +0100", "10-27 02:30 +0100", "10-27 03:00 +0100"]
        assert local_runs("*/30 * * * *", BERLIN, "2030-10-27 01:45", 5) == expected
        assert local_runs("*/30 * * * *", BERLIN, "2030-03-31 01:15", 3) == [
            "03-31 01:30 +0100",
            "03-31 03:00 +0200",
            "03-31 03:30 +0200",
        ]

    def test_every_half_hour_of_the_missing_hour_does_not_come(self) -> None:
        assert local_runs("*/30 2 * * *", BERLIN, "2030-03-31 00:00", 1) == ["04-01 02:00 +0200"]

    @pytest.mark.parametrize("zone_name", [BERLIN, NEW_YORK, "Australia/Lord_Howe", "Africa/Cairo", "America/Havana"])
    @pytest.mark.parametrize("line", ["30 0 * * *", "0 1 * * *", "15,45 1-2 * * *", "*/20 * * * *", "0 0 0,2 * * *"])
    def test_it_always_moves_on(self, zone_name: str, line: str) -> None:
        for start in ("2030-03-01", "2030-10-01"):
            found = [utc(start), *islice(runs(cron(line, zone_name), utc(start)), 120)]
            assert all(earlier < later for earlier, later in pairwise(found))

    @given(st.datetimes(datetime(2024, 1, 1), datetime(2040, 1, 1)))  # noqa: DTZ001 — made aware below
    def test_a_daily_line_runs_once_a_day(self, time: datetime) -> None:
        after = time.replace(tzinfo=UTC)
        for zone_name in (BERLIN, NEW_YORK):
            due = next_due(cron("30 2 * * *", zone_name), after)
            assert timedelta(0) < due - after <= DAY + HOUR
            assert due.astimezone(ZoneInfo(zone_name)).strftime("%H:%M") in {"02:30", "03:00"}


class TestChecks:
    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("", "Wrong number of fields"),
            ("* * * *", "Wrong number of fields"),
            ("* * * * * * *", "Wrong number of fields"),
            ("@daily", "Wrong number of fields"),
            ("60 * * * *", "Bad minute"),
            ("* 24 * * *", "Bad hour"),
            ("* * 0 * *", "Bad day-of-month"),
            ("* * * 13 *", "Bad month"),
            ("* * * * 8", "Bad day-of-week"),
            ("61 * * * * *", "Bad second"),
            ("*/0 * * * *", "Bad minute"),
            ("30-10 * * * *", "Bad minute"),
            ("-1 * * * *", "Bad minute"),
            ("٣ * * * *", "Bad minute"),
            (f"{'9' * 5000} * * * *", "Exceeds the limit"),
            ("0 0 31 2 *", "Bad day-of-month"),
            ("0 0 31 4,6,9,11 *", "Bad day-of-month"),
        ],
    )
    def test_a_bad_line_is_named_with_what_is_wrong(self, line: str, reason: str) -> None:
        with pytest.raises(ValueError, match=r"cron line .* is not valid") as caught:
            check_cron(line)
        assert repr(line) in str(caught.value)
        assert reason in str(caught.value)

    @pytest.mark.parametrize("line", [None, 5, b"* * * * *"])
    def test_a_line_is_text(self, line: Any) -> None:
        with pytest.raises(ValueError, match="give text such as '30 4"):
            check_cron(line)

    def test_a_time_that_is_always_in_the_gap_never_comes(self) -> None:
        """With seconds there is no moving to the gap's end; New York's clock never shows 02:30 on that day."""
        with pytest.raises(ValueError, match="its time does not come within 50 years"):
            check_cron("0 30 2 * 3 SUN#2", NEW_YORK)

    @pytest.mark.parametrize("name", ["Europe/Berlim", "Europe", "", "/etc/passwd", "zone.tab", "a\0b", "a" * 5000, 5])
    def test_an_unknown_zone_is_named_with_the_remedy(self, name: Any) -> None:
        with pytest.raises(ValueError, match=r"time zone .* is not known here: .*`pip install tzdata`") as caught:
            check_cron("* * * * *", name)
        assert repr(name) in str(caught.value)

    def test_a_zone_by_name(self) -> None:
        assert zone(None) is UTC
        assert zone(BERLIN) == ZoneInfo(BERLIN)

    def test_without_cronsim_the_error_says_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cronsim", None)
        with pytest.raises(ConfigError, match=r"pip install 'repid-core\[cron\]'"):
            check_cron("* * * * *")


class TestFirstDue:
    def first(self, **given: Any) -> tuple[datetime | None, Recurrence | None]:
        options: dict[str, Any] = {"deferred_until": None, "deferred_by": None, "cron": None, "timezone": None, **given}
        return first_due(now=NOW, **options)

    def test_without_anything_at_once(self) -> None:
        assert self.first() == (None, None)

    @pytest.mark.parametrize("until", [NOW + HOUR, NOW - HOUR])
    def test_deferred_until_is_that_time(self, until: datetime) -> None:
        assert self.first(deferred_until=until) == (until, None)

    def test_an_interval_begins_after_one(self) -> None:
        assert self.first(deferred_by=HOUR) == (NOW + HOUR, Recurrence(interval=HOUR, anchor=NOW))

    def test_an_interval_may_begin_at_a_time(self) -> None:
        until = NOW + 10 * MINUTE
        assert self.first(deferred_by=HOUR, deferred_until=until) == (until, Recurrence(interval=HOUR, anchor=until))

    def test_an_interval_from_the_past_goes_on_with_its_grid(self) -> None:
        past = NOW - 90 * MINUTE
        assert self.first(deferred_by=HOUR, deferred_until=past) == (NOW + 30 * MINUTE, Recurrence(interval=HOUR, anchor=past))

    def test_an_interval_is_of_whole_milliseconds(self) -> None:
        """Else the wire would round the first time and the grid apart, and the message run twice within one."""
        due, recurrence = self.first(deferred_by=timedelta(seconds=1, microseconds=1))
        assert recurrence == Recurrence(interval=timedelta(seconds=1, milliseconds=1), anchor=NOW)
        assert due == NOW + timedelta(seconds=1, milliseconds=1)

    def test_cron_begins_at_its_first_time(self) -> None:
        assert self.first(cron="0 * * * *") == (NOW + HOUR, cron("0 * * * *"))
        assert self.first(cron="0 9 * * *", timezone=BERLIN) == (utc("2030-01-02 08:00"), cron("0 9 * * *", BERLIN))

    def test_cron_begins_at_or_after_a_time(self) -> None:
        assert self.first(cron="0 * * * *", deferred_until=NOW + 3 * HOUR)[0] == NOW + 3 * HOUR
        assert self.first(cron="0 * * * *", deferred_until=NOW + 3 * HOUR + SECOND)[0] == NOW + 4 * HOUR

    def test_cron_from_the_past_begins_at_its_next_time(self) -> None:
        assert self.first(cron="0 * * * *", deferred_until=NOW - 30 * DAY)[0] == NOW + HOUR


@pytest.fixture
def tokyo() -> Iterator[None]:
    """Local time is nine hours ahead of UTC."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the system's time zone cannot be set here")
@pytest.mark.usefixtures("tokyo")
def test_a_naive_time_is_local() -> None:
    naive = datetime(2030, 1, 1, 21)  # noqa: DTZ001 — naive on purpose
    assert aware(naive) == NOW
    assert aware(naive).tzinfo is UTC
    due, _ = first_due(now=NOW - DAY, deferred_until=naive, deferred_by=None, cron=None, timezone=None)
    assert due == NOW


def test_an_aware_time_keeps_its_zone() -> None:
    assert aware(datetime(2030, 1, 1, 13, tzinfo=ZoneInfo(BERLIN))) == NOW


@pytest.mark.parametrize("extreme", [datetime.max.replace(tzinfo=timezone(-HOUR)), datetime.min.replace(tzinfo=timezone(HOUR))])
def test_the_ends_of_the_calendar_are_refused(extreme: datetime) -> None:
    with pytest.raises(ValueError, match="is out of range: choose one in the years 2 to 9998"):
        aware(extreme)


def envelope(ttl: timedelta | None = None, recurrence: Recurrence | None = None, **fields: Any) -> Envelope:
    return Envelope(RoutingKey("a", "act"), Parameters(NOW, retries=3, tried=2, ttl=ttl, recurrence=recurrence), **fields)


class TestRescheduled:
    def test_it_is_due_then_and_counts_as_told(self) -> None:
        again = rescheduled(envelope(), NOW + HOUR, NOW, tried=3)
        assert again == evolve(envelope(), due=NOW + HOUR, parameters=evolve(envelope().parameters, tried=3))

    def test_a_new_schedule_counts_from_nothing(self) -> None:
        assert rescheduled(envelope(), NOW + HOUR, NOW).parameters.tried == 0

    def test_the_ttl_counts_from_the_new_due_time(self) -> None:
        old = envelope(MINUTE, expires_at=NOW)
        assert rescheduled(old, NOW + HOUR, NOW).expires_at == NOW + HOUR + MINUTE
        assert rescheduled(old, None, NOW + 2 * HOUR).expires_at == NOW + 2 * HOUR + MINUTE
        assert rescheduled(envelope(), NOW + HOUR, NOW).expires_at is None

    def test_a_recurring_message_is_never_ended_by_its_ttl(self) -> None:
        again = rescheduled(envelope(MINUTE, Recurrence(interval=HOUR, anchor=NOW)), NOW + HOUR, NOW)
        assert (again.due, again.expires_at) == (NOW + HOUR, None)


class TestIsOverdue:
    MOMENT = timedelta(milliseconds=1)

    def test_without_a_ttl_never(self) -> None:
        assert not is_overdue(envelope(due=NOW - 1000 * DAY), NOW)

    def test_after_it_expired(self) -> None:
        message = envelope(MINUTE, due=NOW, expires_at=NOW + MINUTE)
        assert not is_overdue(message, NOW + MINUTE)
        assert is_overdue(message, NOW + MINUTE + self.MOMENT)

    def test_a_recurring_one_when_its_ttl_has_passed_since_it_was_due(self) -> None:
        message = envelope(MINUTE, Recurrence(interval=HOUR, anchor=NOW), due=NOW + HOUR)
        assert not is_overdue(message, NOW + HOUR + MINUTE)
        assert is_overdue(message, NOW + HOUR + MINUTE + self.MOMENT)

    def test_without_a_due_time_the_timestamp_counts(self) -> None:
        message = envelope(MINUTE, Recurrence(interval=HOUR, anchor=NOW))
        assert not is_overdue(message, NOW + MINUTE)
        assert is_overdue(message, NOW + MINUTE + self.MOMENT)
