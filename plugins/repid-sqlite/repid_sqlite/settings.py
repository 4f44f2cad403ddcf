"""What can be set."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal, NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

from attrs import Attribute, field, frozen

from repid_core import Size

_FORM: Final = "sqlite:///absolute/path/to/file, sqlite://./relative/path, or a plain path"
_QUERY: Final = ("prefix", "synchronous")
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_LONGEST_BLOB: Final = 900_000_000  # SQLite takes 1,000,000,000 bytes in a row, with all that is beside the payload

Synchronous = Literal["normal", "full", "extra"]
_Check = Callable[[Any, "Attribute[Any]", Any], None]


def _whole(low: int, high: int) -> _Check:
    def check(_settings: Any, attribute: Attribute[Any], value: Any) -> None:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{attribute.name}={value!r}: give a whole number from {low:,} to {high:,}")

    return check


def _span(low: timedelta) -> _Check:
    def check(_settings: Any, attribute: Attribute[Any], value: Any) -> None:
        if not isinstance(value, timedelta) or value < low:
            raise ValueError(f"{attribute.name}={value!r}: give a timedelta of at least {low.total_seconds():g} s")

    return check


def _flag(_settings: Any, attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{attribute.name}={value!r}: give True or False")  # noqa: TRY004 — settings that are wrong are ValueErrors


def _prefix(_settings: Any, attribute: Attribute[Any], value: Any) -> None:
    if value is not None and not (isinstance(value, str) and _PREFIX.fullmatch(value)):
        raise ValueError(f"{attribute.name}={value!r}: give 1 to 100 of ASCII letters, digits, '_', '.' and '-'")


def _synchronous(_settings: Any, attribute: Attribute[Any], value: Any) -> None:
    if value not in {None, "normal", "full", "extra"}:
        raise ValueError(f"{attribute.name}={value!r}: give one of 'normal', 'full', 'extra'")


def _as_text(url: str | Path) -> str:
    return str(url) if isinstance(url, Path) else url


@frozen
class Place:
    """Where the file is.

    Attributes:
        path: The file.
        prefix: The prefix that the URL gives; None if it gives none.
        synchronous: The same for that setting.
    """

    path: Path
    prefix: str | None = None
    synchronous: str | None = None

    @classmethod
    def parse(cls, text: object) -> Place:
        """Read a URL or a plain path.

        Raises:
            ValueError: It is none; the text names it, and the form that it should have.
        """

        def wrong(why: str) -> NoReturn:
            raise ValueError(f"url={text!r}: {why}; the form is {_FORM}")

        if not isinstance(text, str) or not text:
            wrong("it is neither a URL nor a path")
        if not text.startswith("sqlite:"):
            if "://" in text or ":memory:" in text:
                wrong("it is no file" if ":memory:" in text else "its scheme is not sqlite")
            return cls(Path(text))
        parts = urlsplit(text)
        if parts.netloc not in {"", ".", "..", "localhost"}:
            wrong(f"{parts.netloc!r} stands where a host would: absolute paths begin with three slashes, relative ones with ./")
        if parts.fragment:
            wrong("it has a '#': write %23")
        path = re.sub(r"^/+", "/", unquote(parts.path))
        if parts.netloc.startswith("."):
            path = parts.netloc + path
        if not path.strip("/") or ":memory:" in path:
            wrong("it names no file")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        if unknown := query.keys() - _QUERY:
            wrong(f"{min(unknown)!r} is not known after the '?': give it by name")
        return cls(Path(path), query.get("prefix"), query.get("synchronous"))


@frozen
class FileSettings:
    """What both brokers have."""

    url: str = field(converter=_as_text)
    prefix: str | None = field(kw_only=True, default=None, validator=_prefix)
    synchronous: Synchronous | None = field(kw_only=True, default=None, validator=_synchronous)
    busy_timeout: timedelta = field(kw_only=True, default=timedelta(seconds=5), validator=_span(timedelta(milliseconds=1)))
    lease: timedelta = field(kw_only=True, default=timedelta(seconds=15), validator=_span(timedelta(seconds=1)))
    poll: timedelta = field(kw_only=True, default=timedelta(seconds=1), validator=_span(timedelta(milliseconds=10)))

    def __attrs_post_init__(self) -> None:
        place = Place.parse(self.url)
        for name, check in (("prefix", _prefix), ("synchronous", _synchronous)):
            said: str | None = getattr(place, name)
            if said is not None:
                check(self, getattr(type(self).__attrs_attrs__, name), said)
            if said is not None and getattr(self, name) not in {None, said}:
                raise ValueError(f"{name} is in the URL and in the settings, and they differ: leave one out")

    @property
    def path(self) -> Path:
        """The file."""
        return Place.parse(self.url).path

    @property
    def space(self) -> str:
        """The prefix that applies."""
        return self.prefix or Place.parse(self.url).prefix or "repid"

    @property
    def durability(self) -> str:
        """What `PRAGMA synchronous` is set to."""
        return self.synchronous or Place.parse(self.url).synchronous or "normal"


@frozen
class SqliteMessageBrokerSettings(FileSettings):
    """Settings of the message broker in a file of SQLite.

    Attributes:
        url: The file: `sqlite:///absolute/path`, `sqlite://./relative/path` or a plain path, and after a URL where need be
            `?prefix=…` and `&synchronous=…`, as below. It is made if it is not there; its folder is not.
        prefix: What the names of queues begin with in the file, so that several applications can share it. Default: the
            URL's, or else "repid".
        synchronous: "normal" keeps what was accepted when processes die, and may lose the last moments when the machine does;
            "full" waits for the disk at every transaction, and loses nothing then either; "extra" is SQLite's, for file
            systems that are careless with folders. Default: the URL's, or else "normal".
        busy_timeout: How long a call waits for another process that writes, before it fails. Default: 5 s.
        lease: How long a worker that has not died may be silent, as one that was stopped is, before its messages go to
            others. A worker's death is noticed at once. Jobs may run for longer. At least 1 s. Default: 15 s.
        poll: How often an idle consumer looks whether it has missed something, and how long wake-ups take where there are no
            Unix sockets. At least 10 ms. Default: 1 s.
        max_deliveries: How many workers a message may kill before it goes to DEAD, reason `poison`. At least 2. Default: 5.
        max_payload: The largest payload in bytes; larger ones raise `PayloadTooLargeError`. Default: 16 MiB.
    """

    max_deliveries: int = field(kw_only=True, default=5, validator=_whole(2, 1_000_000))
    max_payload: Size = field(kw_only=True, default=16 << 20, validator=_whole(1, _LONGEST_BLOB))


@frozen
class SqliteBucketBrokerSettings(FileSettings):
    """Settings of the bucket broker in a file of SQLite.

    Attributes:
        url: The file, as for messages. It may be the same one.
        prefix: What the ids of buckets begin with in the file. Default: the URL's, or else "repid".
        synchronous: As for messages. Default: the URL's, or else "normal".
        busy_timeout: How long a call waits for another process that writes, before it fails. Default: 5 s.
        lease: How long this process may be silent before others forget that it waits for buckets. Default: 15 s.
        poll: How often who waits for a bucket looks whether a wake-up was missed. At least 10 ms. Default: 1 s.
        max_payload: The largest bucket in bytes; larger ones raise `PayloadTooLargeError`. Default: 64 MiB.
        use_result_bucket: Accepted, and without effect: every bucket broker takes arguments and results. Default: True.
    """

    max_payload: Size = field(kw_only=True, default=64 << 20, validator=_whole(1, _LONGEST_BLOB))
    use_result_bucket: bool = field(kw_only=True, default=True, validator=_flag)
