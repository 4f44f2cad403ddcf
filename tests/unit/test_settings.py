from __future__ import annotations

from datetime import timedelta
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
from attrs import field, frozen, validators

from repid_core import Size
from repid_core.errors import SettingsError
from repid_core.settings import UNREADABLE, Given, Loose, describe, duration, masked, shown, size, structure


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        ("0.5", 0.5),
        ("30 s", 30),
        ("30s", 30),
        ("500 ms", 0.5),
        ("250 µs", 0.00025),
        ("1h 30m", 5400),
        ("1h30m", 5400),
        ("1 hour 30 minutes", 5400),
        ("1.5 h", 5400),
        ("7 days", 604_800),
        ("2 weeks", 1_209_600),
        ("1 Day", 86_400),
        ("PT15M", 900),
        ("P7D", 604_800),
        ("P1W", 604_800),
        ("P1DT2H3M4.5S", 93_784.5),
        (" 5 min ", 300),
    ],
)
def test_durations_as_people_write_them(text: str, seconds: float) -> None:
    assert duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "soon", "5 parsecs", "5 s later", "-5 s", "P", "PT", "P1Y", "1e3", "nan", "h 5", "9999999999 weeks", "١ s"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no duration: write for example '30 s', '1h 30m', '7 days' or 'PT15M'"):
        duration(text)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0", 0),
        ("512", 512),
        ("512 B", 512),
        ("64 KiB", 65_536),
        ("64kib", 65_536),
        ("10 MB", 10_000_000),
        ("10 kB", 10_000),
        ("1.5 GiB", 3 << 29),
        ("0.1 MB", 100_000),
        ("1 TiB", 1 << 40),
        ("3 bytes", 3),
    ],
)
def test_sizes_as_people_write_them(text: str, amount: int) -> None:
    assert size(text) == amount


@pytest.mark.parametrize("text", ["", "big", "1 K", "1 Mbit", "-1", "0.5 B", "1.0001 kB", "KiB", "1 KiB 2 B"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no size: write for example 512, '64 KiB' \(65,536 bytes\) or '10 MB'"):
        size(text)


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


@frozen
class Inner:
    count: int = 0
    every: timedelta = timedelta(0)


@frozen
class Settings:
    whole: int = 0
    real: float = 0.0
    truth: bool = False
    text: str = ""
    span: timedelta = timedelta(0)
    room: Size = 0
    limit: Size | None = 5
    age: timedelta | None = None
    mode: Literal["fast", "none", 3] | None = "fast"
    colour: Colour = Colour.RED
    level: Level = Level.LOW
    names: list[str] = field(factory=list)
    pauses: tuple[timedelta, timedelta] = (timedelta(0), timedelta(0))
    days: tuple[int, ...] | None = ()
    by_name: dict[str, timedelta] = field(factory=dict)
    inner: Inner = field(factory=Inner)
    where: Path = Path()
    either: int | str = 0
    thing: Any = None


SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("key", "value", "result"),
    [
        ("whole", 3, 3),
        ("real", 3, 3.0),
        ("truth", True, True),
        ("text", "none", "none"),
        ("span", "1 s", SECOND),
        ("span", 1, SECOND),
        ("span", 0.5, SECOND / 2),
        ("span", SECOND, SECOND),
        ("room", "1 KiB", 1024),
        ("room", 7, 7),
        ("limit", "1 KiB", 1024),
        ("limit", "none", None),
        ("limit", None, None),
        ("age", "none", None),
        ("age", "1 s", SECOND),
        ("mode", "none", "none"),
        ("mode", 3, 3),
        ("colour", "red", Colour.RED),
        ("level", 2, Level.HIGH),
        ("names", ["a", "b"], ["a", "b"]),
        ("pauses", ["1 s", 1], (SECOND, SECOND)),
        ("days", [1, 2], (1, 2)),
        ("days", "none", None),
        ("by_name", {"a": "1 s"}, {"a": SECOND}),
        ("inner", {"count": 2, "every": "1 s"}, Inner(2, SECOND)),
        ("inner", Inner(2), Inner(2)),
        ("where", "/a", Path("/a")),
        ("either", 1, 1),
        ("either", "1", "1"),
        ("thing", {"a": 1}, {"a": 1}),
        ("whole", Loose("3"), 3),
        ("real", Loose("0.5"), 0.5),
        ("truth", Loose("on"), True),
        ("truth", Loose("FALSE"), False),
        ("span", Loose("1"), SECOND),
        ("room", Loose("1 kB"), 1000),
        ("limit", Loose("none"), None),
        ("mode", Loose("3"), 3),
        ("level", Loose("2"), Level.HIGH),
        ("names", Loose("a, b"), ["a", "b"]),
        ("names", Loose(""), []),
        ("pauses", Loose("1 s, 1000 ms"), (SECOND, SECOND)),
        ("days", Loose("1,2"), (1, 2)),
        ("days", Loose("none"), None),
        ("either", Loose("1"), 1),
        ("either", Loose("x"), "x"),
    ],
)
def test_what_a_type_takes(key: str, value: object, result: object) -> None:
    got = getattr(structure(Settings, {key: value}), key)
    assert got == result
    assert type(got) is type(result)


DURATION = "a duration such as '30 s', '1h 30m' or 'PT15M', or a number of seconds"
SIZE = "a size such as '64 KiB', or a number of bytes"


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("whole", "3", "s.whole: expected a whole number, got '3'"),
        ("whole", True, "s.whole: expected a whole number, got True"),
        ("whole", 1.5, "s.whole: expected a whole number, got 1.5"),
        ("whole", Loose("x"), "s.whole: expected a whole number, got 'x'"),
        ("real", "x", "s.real: expected a number, got 'x'"),
        ("truth", "true", "s.truth: expected true or false, got 'true'"),
        ("truth", 1, "s.truth: expected true or false, got 1"),
        ("truth", Loose("maybe"), "s.truth: expected true or false, got 'maybe'"),
        ("text", 3, "s.text: expected a text, got 3: write it in quotes"),
        ("span", "soon", f"s.span: expected {DURATION}, got 'soon'"),
        ("span", True, f"s.span: expected {DURATION}, got True"),
        ("span", float("inf"), f"s.span: expected {DURATION}, got inf"),
        ("room", "1 K", f"s.room: expected {SIZE}, got '1 K'"),
        ("room", 1.5, f"s.room: expected {SIZE}, got 1.5"),
        ("limit", "no", f"s.limit: expected {SIZE} or 'none', got 'no'"),
        ("mode", "slow", "s.mode: expected one of 'fast', 'none', 3, got 'slow'"),
        ("colour", "blue", "s.colour: expected one of 'red', got 'blue'"),
        ("level", 9, "s.level: expected one of 1, 2, got 9"),
        ("names", "abc", "s.names: expected a list, each a text, got 'abc'"),
        ("names", ["a", 1], "s.names[1]: expected a text, got 1: write it in quotes"),
        ("pauses", ["1 s"], f"s.pauses: expected a list of 2: {DURATION}, {DURATION}, got ['1 s']"),
        ("by_name", 3, "s.by_name: expected a table, got 3"),
        ("by_name", {"a": "x"}, f"s.by_name['a']: expected {DURATION}, got 'x'"),
        ("inner", {"count": "x"}, "s.inner.count: expected a whole number, got 'x'"),
        ("inner", {"size": 1}, "s.inner: unknown key size: there are count, every"),
        ("inner", "x", "s.inner: expected a table, got 'x'"),
        ("where", 3, "s.where: expected a path, got 3"),
        ("either", [], "s.either: expected a whole number or a text, got []"),
        ("hole", 3, "s.hole: unknown key, did you mean 'whole'?"),
        ("zzz", 3, f"s.zzz: unknown key, there are {', '.join(a.name for a in attrs.fields(Settings))}"),
    ],
)
def test_what_a_type_refuses_names_path_value_and_what_is_wanted(key: str, value: object, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        structure(Settings, {key: value}, path="s")
    assert caught.value.problems == (text,)


def _short(settings: Checked, _attribute: Any, value: timedelta) -> None:
    if value > settings.longest:
        raise ValueError(f"pause={value!r}: give at most {settings.longest}")


def _plain(_settings: Any, _attribute: Any, value: str) -> None:
    if "!" in value:
        raise ValueError(f"{value} has a '!'")


@frozen
class Checked:
    url: str
    longest: timedelta = field(default=timedelta(seconds=5), kw_only=True)
    pause: timedelta = field(default=timedelta(0), kw_only=True, validator=_short)
    number: int = field(default=1, kw_only=True, validator=validators.ge(1))
    kind: str = field(default="", kw_only=True, validator=_plain)
    password: str = field(default="", kw_only=True, validator=_plain)
    pin: str = field(default="", kw_only=True, repr=False, validator=_plain)
    host: str = field(kw_only=True)

    @host.default
    def _host(self) -> str:
        return self.url.partition("://")[2]

    def __attrs_post_init__(self) -> None:
        if not self.host:
            raise ValueError(f"url={self.url!r}: it has no host")
        if self.number == 7:
            raise ValueError("seven is not for us")


def test_every_error_comes_at_once_with_its_path_and_where_it_came_from() -> None:
    given = {
        "url": Given("kv://host", "app.toml"),
        "pause": Given("6 s", "app.toml"),
        "number": Given(Loose("0"), "REPID_NUMBER"),
        "kind": Given(3, "app.toml"),
        "longes": Given("1 s", "app.toml"),
    }
    with pytest.raises(SettingsError) as caught:
        structure(Checked, given, path="broker", what="message broker 'kv'", origin="app.toml")
    assert set(caught.value.problems) == {
        "broker.pause (app.toml): '6 s': give at most 0:00:05",
        "broker.number (REPID_NUMBER): 'number' must be >= 1: 0",
        "broker.kind (app.toml): expected a text, got 3: write it in quotes",
        "broker.longes (app.toml): unknown key, did you mean 'longest'?",
    }
    assert str(caught.value).startswith("invalid settings:\n  broker.")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "broker.url (app.toml): missing: message broker 'kv' wants a text"),
        ({"url": "kv://"}, "broker.url (app.toml): 'kv://': it has no host"),
        ({"url": "kv://h", "number": 7}, "broker (app.toml): seven is not for us"),
    ],
)
def test_what_is_missing_and_what_the_class_says_of_all_together(given: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        structure(Checked, given, path="broker", what="message broker 'kv'", origin="app.toml")
    assert caught.value.problems == (text,)


def test_validators_that_look_at_other_fields_see_what_is_given() -> None:
    assert structure(Checked, {"url": "kv://h", "longest": "1 h", "pause": "1 h"}).pause == timedelta(hours=1)


def test_secrets_are_not_in_errors() -> None:
    given = {"url": "kv://me:hunter2@", "password": "sesame!", "pin": "1234!"}
    with pytest.raises(SettingsError) as caught:
        structure(Checked, given, path="broker")
    text = str(caught.value)
    assert "*** has a '!'" in text
    assert not any(secret in text for secret in ("hunter2", "sesame", "1234"))
    assert caught.value.__cause__ is None, "whose text would be in the log"
    for given in ({"url": 3, "password": ["sesame"]}, {"url": ["kv://me:hunter2@"], "pin": 1234}):
        with pytest.raises(SettingsError) as caught:
            structure(Checked, given)
        assert not any(secret in str(caught.value) for secret in ("hunter2", "sesame", "1234"))


def test_what_could_not_be_read_is_no_second_error() -> None:
    with pytest.raises(SettingsError) as caught:
        structure(Checked, {"url": UNREADABLE})
    assert caught.value.problems == ()
    with pytest.raises(SettingsError) as caught:
        structure(Settings, {"names": ["a", UNREADABLE], "by_name": {"a": UNREADABLE}, "whole": "x"})
    assert caught.value.problems == ("whole: expected a whole number, got 'x'",)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://localhost/0", "redis://localhost/0"),
        ("redis://:hunter2@localhost/0", "redis://:***@localhost/0"),
        ("redis://me:hun@ter2@localhost/0", "redis://me:***@localhost/0"),
        ("redis://me@localhost", "redis://me@localhost"),
        ("kv://host/?access_key=abc&lease=3&password=x", "kv://host/?access_key=***&lease=3&password=***"),
        ("kv://host?password=a@b&x=1", "kv://host?password=***&x=1"),
        ("kv://host:80/path", "kv://host:80/path"),
        ("no url", "no url"),
    ],
)
def test_urls_for_people_have_no_password(url: str, text: str) -> None:
    assert masked(url) == text
    assert shown(url) == repr(text)


def test_values_for_people_have_no_secrets() -> None:
    assert shown("abc", "secret_token") == "***"
    assert shown("abc", "keyfile") == "'abc'"
    assert shown({"password": "abc", "user": "me"}) == "{password: ***, user: 'me'}"
    assert shown(["redis://:abc@h"]) == "['redis://:***@h']"
    assert len(shown("x" * 1000)) < 120
    assert "abc" not in repr(Given("abc", "somewhere"))


def test_a_size_is_an_int_to_python_and_to_type_checkers() -> None:
    assert attrs.asdict(Settings(room=5))["room"] == 5
    assert describe(Size) == SIZE


def test_a_class_whose_types_are_not_there_at_run_time() -> None:
    @frozen
    class Hidden:
        place: Nowhere = None  # type: ignore[name-defined] # noqa: F821

    with pytest.raises(SettingsError) as caught:
        structure(Hidden, {"place": 1}, path="broker")
    assert caught.value.problems == (
        "broker: Hidden cannot be read: name 'Nowhere' is not defined: import the types of its fields at run time, too",
    )
