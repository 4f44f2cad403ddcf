"""What can be set."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, Literal, NoReturn
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from attrs import Attribute, field, frozen

from repid_core import Size

_FORM: Final = "s3://bucket/prefix/?region_name=…&endpoint_url=…"
_DEFAULT: Final = "repid/"
_QUERY: Final = ("region_name", "endpoint_url")
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}|arn:[A-Za-z0-9:._/-]+")
_PREFIX: Final = re.compile(r"[A-Za-z0-9!_.*'()-][A-Za-z0-9!_.*'()/-]*")
_LONGEST_PREFIX: Final = 200  # bytes, so that with an id of 256 it is a key, which has at most 1,024
_LADDER: Final = (1, 2, 3, 7, 14, 30, 60, 90, 180, 365)

_Check = Callable[[Any, "Attribute[Any]", Any], None]


def _whole(low: int, high: int) -> _Check:
    def check(_settings: Any, attribute: Attribute[Any], value: Any) -> None:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{attribute.name}={value!r}: give a whole number from {low:,} to {high:,}")

    return check


def _span(low: timedelta, *, none: bool = False) -> _Check:
    def check(_settings: Any, attribute: Attribute[Any], value: Any) -> None:
        if none and value is None:
            return
        if not isinstance(value, timedelta) or value < low:
            least = f"a timedelta of at least {low.total_seconds():g} s"
            raise ValueError(f"{attribute.name}={value!r}: give {least}{', or None' if none else ''}")

    return check


def _flag(_settings: Any, attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{attribute.name}={value!r}: give True or False")  # noqa: TRY004 — settings that are wrong are ValueErrors


def _one_of(*choices: str | None) -> _Check:
    def check(_settings: Any, attribute: Attribute[Any], value: Any) -> None:
        if value not in choices:
            raise ValueError(f"{attribute.name}={value!r}: give one of {', '.join(map(repr, choices))}")

    return check


def _text(_settings: Any, attribute: Attribute[Any], value: Any) -> None:
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError(f"{attribute.name}={value!r}: give a text that is not empty, or None")


def _ladder(_settings: Any, _attribute: Attribute[Any], value: Any) -> None:
    if not (
        isinstance(value, tuple)
        and value
        and all(type(days) is int and days > 0 for days in value)
        and list(value) == sorted(set(value))
    ):
        raise ValueError(f"ttl_days={value!r}: give whole numbers of days from 1 on, each larger than the one before")


def _days(_settings: Any, _attribute: Attribute[Any], value: Any) -> None:
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"prefix_days={value!r}: give a whole number of days from 1 on, or None")


def _account(_settings: Any, _attribute: Attribute[Any], value: Any) -> None:
    if value is not None and not (isinstance(value, str) and re.fullmatch(r"\d{12}", value)):
        raise ValueError(f"expected_bucket_owner={value!r}: give the twelve digits of an account, or None")


def _factor(_settings: Any, _attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1 <= value <= 10:
        raise ValueError(f"poll_factor={value!r}: give a number from 1 to 10")


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # configuration files have no tuples


def masked(url: object) -> str:
    """The `repr` of a URL, without what may be credentials."""
    if not isinstance(url, str):
        return f"<{type(url).__name__}>"
    scheme, colon, rest = url.partition("://")
    who, at, place = rest.rpartition("@")
    return repr(f"{scheme}{colon}{'***@' if at or who else ''}{place}")


@frozen
class Place:
    """Where buckets are.

    Attributes:
        bucket: The bucket of S3.
        prefix: What keys begin with; it ends with a slash.
        region_name: Of the bucket; None for what boto3 finds.
        endpoint_url: Of the server; None for that of AWS.
    """

    bucket: str
    prefix: str
    region_name: str | None = None
    endpoint_url: str | None = None

    @classmethod
    def parse(cls, text: object, more: str | None = None) -> Place:
        """Read a URL.

        Args:
            text: The URL.
            more: What follows its prefix.

        Raises:
            ValueError: It is none; the text names it, and the form that it should have.
        """

        def wrong(why: str) -> NoReturn:
            raise ValueError(f"url={masked(text)}: {why}; the form is {_FORM}")

        if not isinstance(text, str) or not text.startswith("s3://"):
            wrong("it is no URL that begins with s3://")
        parts = urlsplit(text)
        if "@" in parts.netloc:
            wrong("no credentials go into it: boto3 finds them in the environment, in its files, or by the machine's role")
        if parts.fragment:
            wrong("it has a '#'")
        bucket, own = unquote(parts.netloc), unquote(parts.path).removeprefix("/")
        if not _BUCKET.fullmatch(bucket):
            wrong(f"{bucket!r} is no bucket's name")
        prefix = "".join(part if part.endswith("/") else f"{part}/" for part in (own, more) if part) or _DEFAULT
        if not _PREFIX.fullmatch(prefix) or "//" in prefix or {".", ".."}.intersection(prefix.split("/")):
            wrong(f"the prefix {prefix!r} has more than letters, digits, !_.*'()- and single slashes")
        if len(prefix) > _LONGEST_PREFIX:
            wrong(f"the prefix is longer than {_LONGEST_PREFIX} bytes")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        if unknown := query.keys() - _QUERY:
            wrong(f"{min(unknown)!r} is not known after the '?': give it by name")
        return cls(bucket, prefix, query.get("region_name") or None, query.get("endpoint_url") or None)


@frozen
class S3BucketBrokerSettings:
    """Settings of the bucket broker on S3.

    There is none for credentials: boto3 finds them in the environment, in its files, or by the machine's role; or give the
    broker a `session`.

    Attributes:
        url: The bucket of S3, and what keys begin with: `s3://bucket/prefix/`, by default `repid/`, and where need be
            `?region_name=…` and `&endpoint_url=…`, as below. Default: None, if `bucket` is given.
        bucket: The bucket of S3, in the place of a URL. Default: None.
        prefix: What keys begin with; with a URL that has a prefix, what follows that. Applications that share a bucket need
            prefixes of which none begins with another. Default: None, for the URL's, or else `repid/`.
        region_name: Of the bucket. Default: the URL's, or else what boto3 finds.
        endpoint_url: Of a server that is not AWS. Default: the URL's, or else what boto3 finds.
        retention: How the storage of what has expired is freed. "tags": objects are tagged with the class of their TTL, and a
            rule for each class deletes them. "prefix": one rule deletes all objects after `prefix_days`, for servers that know
            no tags. "none": not at all. Default: "tags".
        ttl_days: With tags, the classes in days; a TTL belongs to the first that is not shorter. What is longer than the last
            is kept until it is deleted. Default: 1, 2, 3, 7, 14, 30, 60, 90, 180, 365.
        prefix_days: With "prefix", after how many days objects are deleted, whatever their TTL; longer TTLs, and None, are
            refused. Default: None.
        lifecycle: "ensure" to put missing rules into the bucket's configuration, "check" to warn of them, "off" for neither.
            Default: "ensure".
        purge_noncurrent: Whether, in a bucket with versions, the rules delete versions that were overwritten or deleted, after
            a day. Default: True.
        concurrency: Requests at once; each has a thread. 1 to 1,000. Default: 32.
        switch_interval: How long a thread of the process may compute while others wait, as long as the broker is connected
            (`sys.setswitchinterval`); it makes that time shorter, never longer. With Python's 5 ms the event loop waits
            longer for boto3's threads. At least 0.1 ms. Default: 0.5 ms; None to leave it as it is.
        connect_timeout: How long connecting may take. Default: 5 s.
        read_timeout: For how long the server may say nothing. Default: 30 s.
        max_attempts: How often a request is made before it has failed. 1 to 20. Default: 4.
        checksums: "when_required" to send only the checksums that S3 asks for, as other servers need, or "when_supported".
            Default: "when_required".
        sse: "AES256" or "aws:kms" to ask for encryption at rest; None for what the bucket does. Default: None.
        sse_kms_key_id: With "aws:kms", the key. Default: None, for the account's.
        expected_bucket_owner: The account that the bucket must belong to. Default: None, for any.
        addressing_style: Whether the bucket is in the "path" or, "virtual", in the host's name; "auto" for what boto3 thinks.
            Default: "auto".
        max_payload: The largest bucket in bytes; larger ones raise `PayloadTooLargeError` before anything is sent. At most
            5 GiB, which S3 takes in one request. Default: 64 MiB.
        poll_first: Who waits for a bucket looks again after this time. Default: 50 ms.
        poll_factor: By how much the pause grows with each look. 1 to 10. Default: 1.5.
        poll_longest: The longest pause. Default: 2 s.
    """

    url: str | None = field(default=None, repr=masked)
    bucket: str | None = field(default=None, kw_only=True, validator=_text)
    prefix: str | None = field(default=None, kw_only=True, validator=_text)
    region_name: str | None = field(default=None, kw_only=True, validator=_text)
    endpoint_url: str | None = field(default=None, kw_only=True, validator=_text)
    retention: Literal["tags", "prefix", "none"] = field(
        default="tags", kw_only=True, validator=_one_of("tags", "prefix", "none")
    )
    ttl_days: tuple[int, ...] = field(default=_LADDER, kw_only=True, converter=_as_tuple, validator=_ladder)
    prefix_days: int | None = field(default=None, kw_only=True, validator=_days)
    lifecycle: Literal["ensure", "check", "off"] = field(
        default="ensure", kw_only=True, validator=_one_of("ensure", "check", "off")
    )
    purge_noncurrent: bool = field(default=True, kw_only=True, validator=_flag)
    concurrency: int = field(default=32, kw_only=True, validator=_whole(1, 1000))
    switch_interval: timedelta | None = field(
        default=timedelta(microseconds=500), kw_only=True, validator=_span(timedelta(microseconds=100), none=True)
    )
    connect_timeout: timedelta = field(default=timedelta(seconds=5), kw_only=True, validator=_span(timedelta(milliseconds=1)))
    read_timeout: timedelta = field(default=timedelta(seconds=30), kw_only=True, validator=_span(timedelta(milliseconds=1)))
    max_attempts: int = field(default=4, kw_only=True, validator=_whole(1, 20))
    checksums: Literal["when_required", "when_supported"] = field(
        default="when_required", kw_only=True, validator=_one_of("when_required", "when_supported")
    )
    sse: Literal["AES256", "aws:kms"] | None = field(default=None, kw_only=True, validator=_one_of(None, "AES256", "aws:kms"))
    sse_kms_key_id: str | None = field(default=None, kw_only=True, validator=_text)
    expected_bucket_owner: str | None = field(default=None, kw_only=True, validator=_account)
    addressing_style: Literal["auto", "path", "virtual"] = field(
        default="auto", kw_only=True, validator=_one_of("auto", "path", "virtual")
    )
    max_payload: Size = field(default=64 << 20, kw_only=True, validator=_whole(1, 5 << 30))
    poll_first: timedelta = field(default=timedelta(milliseconds=50), kw_only=True, validator=_span(timedelta(milliseconds=1)))
    poll_factor: float = field(default=1.5, kw_only=True, validator=_factor)
    poll_longest: timedelta = field(default=timedelta(seconds=2), kw_only=True, validator=_span(timedelta(milliseconds=1)))

    def __attrs_post_init__(self) -> None:
        place = self.place
        for name in _QUERY:
            if self.url and getattr(self, name) and getattr(Place.parse(self.url), name) not in {None, getattr(self, name)}:
                raise ValueError(f"{name} is in the URL and in the settings, and they differ: leave one out")
        if place.endpoint_url and urlsplit(place.endpoint_url).scheme not in {"http", "https"}:
            raise ValueError(f"endpoint_url={place.endpoint_url!r}: give a URL that begins with https:// or http://")
        if (self.prefix_days is None) != (self.retention != "prefix"):
            raise ValueError(
                f'prefix_days={self.prefix_days} and retention="{self.retention}": "prefix" goes with a number of days'
            )
        if self.sse_kms_key_id and self.sse != "aws:kms":
            raise ValueError('sse_kms_key_id is for sse="aws:kms": leave it out, or set that')
        if self.poll_longest < self.poll_first:
            raise ValueError(f"poll_longest={self.poll_longest!r} is shorter than poll_first={self.poll_first!r}")

    @property
    def place(self) -> Place:
        """Where buckets are."""
        if (self.url is None) == (self.bucket is None):
            raise ValueError(f"give a url ({_FORM}), or a bucket{', and not both' if self.url else ''}")
        place = Place.parse(self.url or f"s3://{quote(str(self.bucket), safe='')}/", self.prefix)
        return Place(place.bucket, place.prefix, self.region_name or place.region_name, self.endpoint_url or place.endpoint_url)
