"""What can be set."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, Literal

from attrs import Attribute, evolve, field, fields, frozen

from repid_core import Size
from repid_redis.url import Mode, RedisURL, masked

_LARGEST: Final = (512 << 20) - (64 << 10)  # bytes: what a server takes in one string by default, and room for what is beside
_NAME: Final = re.compile(r"[!-~]+")  # what a server takes as the name of a client

_Check = Callable[[Any, "Attribute[Any]", Any], None]


def _whole(low: int, high: int | None = None, *, none: str | None = None) -> _Check:
    """Check for a whole number.

    Args:
        low: The smallest.
        high: The largest; None for no limit.
        none: What None stands for; None if it must be a number.
    """
    span = f"a whole number from {low:,} {'on' if high is None else f'to {high:,}'}"

    def check(_settings: Any, attribute: Attribute[Any], value: Any) -> None:
        if value is None and none is not None:
            return
        if type(value) is not int or value < low or (high is not None and value > high):
            raise ValueError(f"{attribute.name}={value!r}: give {span}{f', or None for {none}' if none else ''}")

    return check


def _span(low: timedelta, *, none: str | None = None) -> _Check:
    """Check for a duration that is not shorter than `low`."""

    def check(_settings: Any, attribute: Attribute[Any], value: Any) -> None:
        if value is None and none is not None:
            return
        if not isinstance(value, timedelta) or value < low:
            least = f"a timedelta of at least {low.total_seconds():g} s"
            raise ValueError(f"{attribute.name}={value!r}: give {least}{f', or None for {none}' if none else ''}")

    return check


def _flag(_settings: Any, attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{attribute.name}={value!r}: give True or False")  # noqa: TRY004 — settings that are wrong are ValueErrors


def _one_of(*choices: str) -> _Check:
    def check(_settings: Any, attribute: Attribute[Any], value: Any) -> None:
        if value not in choices:
            raise ValueError(f"{attribute.name}={value!r}: give one of {', '.join(map(repr, choices))}")

    return check


def _text(_settings: Any, attribute: Attribute[Any], value: Any) -> None:
    if value is not None and (not isinstance(value, str) or not value):
        shown = type(value).__name__ if "password" in attribute.name else repr(value)
        raise ValueError(f"{attribute.name} is {shown}: give a text that is not empty, or None")


def _prefix(_settings: Any, _attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, str) or not value or not value.isprintable() or any(sign in value for sign in "{} *?[]\\"):
        raise ValueError(
            f"prefix={value!r}: give a text of printable signs, without spaces, braces, which choose a cluster's node, "
            "and * ? [ ] \\, which are patterns to ACL and SCAN"
        )


def _client_name(_settings: Any, _attribute: Attribute[Any], value: Any) -> None:
    if value is not None and not (isinstance(value, str) and _NAME.fullmatch(value)):
        raise ValueError(f"client_name={value!r}: give ASCII letters, digits and punctuation, without spaces, or None")


def _backoff(_settings: Any, _attribute: Attribute[Any], value: Any) -> None:
    if not (
        isinstance(value, tuple)
        and len(value) == 2
        and all(isinstance(pause, timedelta) for pause in value)
        and timedelta(0) < value[0] <= value[1]
    ):
        raise ValueError(f"reconnect_backoff={value!r}: give two timedeltas over 0, the shortest pause and the longest")


def _as_pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # configuration files have no tuples


def _beat(settings: RedisMessageBrokerSettings, _attribute: Attribute[Any], value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, timedelta) or not timedelta(0) < value <= settings.lease / 2:
        raise ValueError(
            f"heartbeat_interval={value!r}: give a timedelta over 0 and up to half of the lease "
            f"({settings.lease.total_seconds() / 2:g} s), or None for a third of it"
        )


@frozen
class RedisSettings:
    """How to reach Redis or Valkey; what both brokers have in common.

    Attributes:
        url: Where the server is, and who asks. `redis://[user[:password]@]host[:port][/database]`;
            `redis+sentinel://host[:port],…/service[/database]`, with the sentinels' hosts; `redis+cluster://host[:port],…`, with
            some of the nodes; `redis+unix:///path[?db=database]` or `unix:///path`. `rediss` in the place of `redis` is TLS.
            Special characters of user and password are percent-encoded. Default: redis://localhost:6379/0.
        mode: What the servers are: "standalone", "sentinel" or "cluster". Default: what the URL's scheme says.
        service_name: With Sentinel, the name of the server there. Default: the URL's.
        db: The number of the database. Default: the URL's, or else 0.
        username: The ACL user. Default: the URL's, or else the server's default user.
        password: The password. Default: the URL's.
        sentinel_username: The ACL user of the sentinels themselves. Default: None.
        sentinel_password: The password of the sentinels themselves. Default: None, for they ask for none.
        ssl_ca_certs: TLS: the file with authorities that are trusted beside those of the system. Default: None.
        ssl_certfile: TLS: the file with this client's certificate, for servers that ask for one. Default: None.
        ssl_keyfile: TLS: the file with its key. Default: None, for it is in `ssl_certfile`.
        ssl_check_hostname: TLS: whether the server's certificate must be for the host of the URL. Default: True.
        ssl_cert_reqs: TLS: "required" if the server's certificate must be good, "none" if any will do. Default: "required".
        prefix: What all keys begin with, so that several applications can share one server. Default: "repid".
        connect_timeout: How long connecting may take, and how long a call waits for a lost connection to come back.
            Default: 5 s.
        reply_deadline: How long a reply may take before the connection is taken for dead. Default: 5 s.
        reconnect_backoff: The shortest and the longest pause between attempts to connect; pauses double, with jitter.
            Default: 50 ms and 2 s.
        client_name: How `CLIENT LIST` shows the connections. Default: None, for no name.
        max_payload: The largest payload in bytes; larger ones raise `PayloadTooLargeError` before anything is sent. A server
            takes 512 MiB in one string, but it keeps all in memory, and every other call waits while so much is on its way.
            Default: 16 MiB.

    Raises:
        ValueError: A setting is out of its range; the text says what to give.
    """

    url: str = field(default="redis://localhost:6379/0", repr=masked)
    mode: Mode = field(kw_only=True, validator=_one_of("standalone", "sentinel", "cluster"))
    service_name: str | None = field(default=None, kw_only=True, validator=_text)
    db: int | None = field(default=None, kw_only=True, validator=_whole(0, none="the URL's"))
    username: str | None = field(default=None, kw_only=True, validator=_text)
    password: str | None = field(default=None, kw_only=True, repr=False, validator=_text)
    sentinel_username: str | None = field(default=None, kw_only=True, validator=_text)
    sentinel_password: str | None = field(default=None, kw_only=True, repr=False, validator=_text)
    ssl_ca_certs: str | None = field(default=None, kw_only=True, validator=_text)
    ssl_certfile: str | None = field(default=None, kw_only=True, validator=_text)
    ssl_keyfile: str | None = field(default=None, kw_only=True, validator=_text)
    ssl_check_hostname: bool = field(default=True, kw_only=True, validator=_flag)
    ssl_cert_reqs: Literal["required", "none"] = field(default="required", kw_only=True, validator=_one_of("required", "none"))
    prefix: str = field(default="repid", kw_only=True, validator=_prefix)
    connect_timeout: timedelta = field(default=timedelta(seconds=5), kw_only=True, validator=_span(timedelta(milliseconds=1)))
    reply_deadline: timedelta = field(default=timedelta(seconds=5), kw_only=True, validator=_span(timedelta(milliseconds=100)))
    reconnect_backoff: tuple[timedelta, timedelta] = field(
        default=(timedelta(milliseconds=50), timedelta(seconds=2)), kw_only=True, converter=_as_pair, validator=_backoff
    )
    client_name: str | None = field(default=None, kw_only=True, validator=_client_name)
    max_payload: Size = field(default=16 << 20, kw_only=True, validator=_whole(1, _LARGEST))

    @mode.default
    def _mode(self) -> Mode:
        return RedisURL.parse(self.url).mode

    def __attrs_post_init__(self) -> None:
        url = self.target
        if url.mode == "sentinel" and url.service is None:
            raise ValueError(
                "service_name=None: with Sentinel, give the server's name, as in redis+sentinel://host:26379/mymaster, "
                "or as service_name"
            )
        if url.mode != "sentinel" and (name := self._first("service_name", "sentinel_username", "sentinel_password")):
            raise ValueError(f"{name} is for Sentinel, and mode={url.mode!r}: leave it out, or write redis+sentinel://…")
        if url.mode == "cluster" and url.db:
            raise ValueError(f"db={url.db}: a cluster has the database 0 alone; tell applications apart by prefix")
        tls = self._first("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname", "ssl_cert_reqs")
        if tls and not url.tls:
            scheme = self.url.partition("://")[0].replace("redis", "rediss", 1)
            remedy = "leave it out, a Unix socket has no TLS" if url.socket else f"write {scheme}://…"
            raise ValueError(f"{tls} is set, but the URL asks for no TLS: {remedy}")
        if self.ssl_keyfile and not self.ssl_certfile:
            raise ValueError("ssl_keyfile is set without ssl_certfile: give the certificate that the key belongs to")

    def _first(self, *names: str) -> str | None:
        """The first of these that is not left at its default."""
        known = fields(type(self))
        return next((name for name in names if getattr(self, name) != getattr(known, name).default), None)

    @property
    def target(self) -> RedisURL:
        """The URL, read, with what the settings say over what it says."""
        url = RedisURL.parse(self.url, self.mode)
        return evolve(
            url,
            service=self.service_name or url.service,
            db=url.db if self.db is None else self.db,
            username=self.username or url.username,
            password=self.password or url.password,
        )


@frozen
class RedisMessageBrokerSettings(RedisSettings):
    """Settings of the message broker on Redis or Valkey; `RedisSettings` has those about the connection.

    Attributes:
        lease: How long a worker may be silent before its messages go to others. Jobs may run for longer. At least 1 s.
            Default: 15 s.
        heartbeat_interval: How often a worker that holds messages renews its lease. Default: None, for a third of it.
        heartbeat_thread: Whether the lease is renewed from a thread of its own, so that code that blocks the event loop for
            longer than it does not cost the worker its jobs. Default: True.
        max_blocked: With `heartbeat_thread`, how long the event loop may be blocked before the worker is taken for dead.
            Default: 5 minutes.
        block_timeout: How long an idle consumer waits on the server before it asks again. At least 1 s. Default: 5 s.
        max_deliveries: How many workers a message may kill before it goes to DEAD, reason `poison`. At least 2. Default: 5.
        fetch_max_bytes: How many bytes a consumer asks for at once; a message that is larger comes alone. Default: 4 MiB.
        merge_batch: The most messages in one command. Jobs enqueued one by one go at half of it, so that the server works on one
            half while the other is made. Default: 100.
        merge_bytes: The most bytes that are sent as one command; a message that is larger goes alone. Default: 1 MiB.
        dead_max_age: How long dead messages are kept. Default: None, for ever.
        dead_max_count: How many dead messages a queue keeps; the oldest go first. Default: 100,000; None for no limit.
        wait_replicas: How many replicas must have a message before `enqueue` returns. Default: 0.
        check_eviction_policy: Whether to warn of a server that drops keys when its memory is full. Default: True.
    """

    lease: timedelta = field(default=timedelta(seconds=15), kw_only=True, validator=_span(timedelta(seconds=1)))
    heartbeat_interval: timedelta | None = field(default=None, kw_only=True, validator=_beat)
    heartbeat_thread: bool = field(default=True, kw_only=True, validator=_flag)
    max_blocked: timedelta = field(default=timedelta(minutes=5), kw_only=True, validator=_span(timedelta(seconds=1)))
    block_timeout: timedelta = field(default=timedelta(seconds=5), kw_only=True, validator=_span(timedelta(seconds=1)))
    max_deliveries: int = field(default=5, kw_only=True, validator=_whole(2))
    fetch_max_bytes: Size = field(default=4 << 20, kw_only=True, validator=_whole(1))
    merge_batch: int = field(default=100, kw_only=True, validator=_whole(1, 1000))  # Lua unpacks some 8,000 values
    merge_bytes: Size = field(default=1 << 20, kw_only=True, validator=_whole(1))
    dead_max_age: timedelta | None = field(default=None, kw_only=True, validator=_span(timedelta(seconds=1), none="ever"))
    dead_max_count: int | None = field(default=100_000, kw_only=True, validator=_whole(1, none="no limit"))
    wait_replicas: int = field(default=0, kw_only=True, validator=_whole(0))
    check_eviction_policy: bool = field(default=True, kw_only=True, validator=_flag)


@frozen
class RedisBucketBrokerSettings(RedisSettings):
    """Settings of the bucket broker on Redis or Valkey; `RedisSettings` has those about the connection.

    Attributes:
        use_result_bucket: Accepted, and without effect: every bucket broker takes arguments and results. Default: True.
        compress_from: From how many bytes on buckets are compressed, if that makes them smaller. Brokers read what others have
            compressed whatever their own setting. Default: 8 KiB; None never compresses.
        notify: Whether the server tells a waiting client that its bucket is there; else it asks again and again, up to once a
            second, as it does with servers that cannot tell. Default: True.
    """

    use_result_bucket: bool = field(default=True, kw_only=True, validator=_flag)
    compress_from: Size | None = field(default=8 << 10, kw_only=True, validator=_whole(1, none="never"))
    notify: bool = field(default=True, kw_only=True, validator=_flag)
