"""What can be set."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, Literal

from attrs import Attribute, field, fields, frozen

from repid_core import Size
from repid_rabbitmq.url import AMQPURL, masked

_PREFIX: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")

_Check = Callable[[Any, "Attribute[Any]", Any], None]


def _whole(low: int, high: int | None = None, *, none: str | None = None) -> _Check:
    span = f"a whole number from {low:,} {'on' if high is None else f'to {high:,}'}"

    def check(_settings: Any, attribute: Attribute[Any], value: Any) -> None:
        if value is None and none is not None:
            return
        if type(value) is not int or value < low or (high is not None and value > high):
            raise ValueError(f"{attribute.name}={value!r}: give {span}{f', or None for {none}' if none else ''}")

    return check


def _span(low: timedelta, high: timedelta | None = None, *, none: str | None = None) -> _Check:
    def check(_settings: Any, attribute: Attribute[Any], value: Any) -> None:
        if value is None and none is not None:
            return
        if not isinstance(value, timedelta) or value < low or (high is not None and value > high):
            most = "" if high is None else f" and at most {high.total_seconds():g} s"
            least = f"a timedelta of at least {low.total_seconds():g} s{most}"
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
        shown = type(value).__name__ if attribute.name == "password" else repr(value)
        raise ValueError(f"{attribute.name} is {shown}: give a text that is not empty, or None")


def _prefix(_settings: Any, _attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, str) or not _PREFIX.fullmatch(value):
        raise ValueError(f"prefix={value!r}: give 1 to 64 of ASCII letters, digits, '.', '_' and '-'")


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


@frozen
class RabbitMessageBrokerSettings:
    """Settings of the message broker on RabbitMQ.

    Attributes:
        url: Where the servers are, and who asks: `amqp://[user[:password]@]host[:port][,host[:port]…][/vhost]`, `amqps` for TLS.
            With several hosts, those of a cluster, they are tried in turn. Special characters of user, password and virtual
            host are percent-encoded. Default: amqp://localhost:5672/, with the virtual host `/`.
        username: Who asks. Default: the URL's, or else guest.
        password: The password. Default: the URL's, or else guest.
        auth: "plain" for user and password, "external" if the TLS certificate says who asks. Default: "plain".
        ssl_ca_certs: TLS: the file with authorities that are trusted beside those of the system. Default: None.
        ssl_certfile: TLS: the file with this client's certificate, for servers that ask for one. Default: None.
        ssl_keyfile: TLS: the file with its key. Default: None, for it is in `ssl_certfile`.
        ssl_check_hostname: TLS: whether the server's certificate must be for the host of the URL. Default: True.
        ssl_cert_reqs: TLS: "required" if the server's certificate must be good, "none" if any will do. Default: "required".
        prefix: What all names on the server begin with, so that several applications can share a virtual host. Default: "repid".
        queue_type: "classic" or "quorum". Quorum queues are copied to several nodes of a cluster, and cost more; on a single
            node they are of little use. It cannot be changed for a queue that exists. Default: "classic".
        quorum_group_size: With quorum queues, how many nodes have a copy of a queue. Default: None, for what the server does.
        declare: Whether queues and exchanges are made where they are missing; else they are only looked for. Default: True.
        connect_timeout: How long connecting may take, and how long a call waits for a lost connection to come back.
            Default: 5 s.
        publish_timeout: How long the server may take to confirm a message, for instance while it blocks publishers because it
            is short of memory. Default: 30 s.
        reconnect_backoff: The shortest and the longest pause between attempts to connect; pauses double, with jitter.
            Default: 100 ms and 2 s.
        heartbeat: After how long a silence either side takes the other for dead. A worker whose event loop is blocked for
            longer loses its messages to others. 1 s to 1 h. Default: 60 s.
        connection_name: How the server shows the connections; what they are for is added. Default: None, for `repid`.
        frame_max: The largest frame in bytes, 4,096 to 1 MiB; the server may want less. Default: 128 KiB.
        max_payload: The largest payload in bytes; larger ones raise `PayloadTooLargeError` before anything is sent. The server
            has a limit of its own, 128 MiB before RabbitMQ 4 and 16 MiB since. Default: 16 MiB.
        max_unconfirmed: How many messages may be sent before the first of them is confirmed; more wait in this process.
            Default: 5,000.
        read_ahead: How many messages the server may send a consumer beyond those that the worker has room for. A worker of few
            jobs at once that are very short need not wait for the next; but what is read ahead waits for this worker, even if
            others are idle. Default: 0.
        max_deliveries: How many workers a message may kill before it goes to DEAD, reason `poison`. At least 3. Default: 5;
            None for no limit, which saves the server what it costs to count.
        consumer_timeout: How long a message may be with a worker before the server takes it back: asked for with each
            consumer, which RabbitMQ heeds from 3.12 on. Default: None, for what the server does, 30 minutes as a rule.
    """

    url: str = field(default="amqp://localhost:5672/", repr=masked)
    username: str | None = field(default=None, kw_only=True, validator=_text)
    password: str | None = field(default=None, kw_only=True, repr=False, validator=_text)
    auth: Literal["plain", "external"] = field(default="plain", kw_only=True, validator=_one_of("plain", "external"))
    ssl_ca_certs: str | None = field(default=None, kw_only=True, validator=_text)
    ssl_certfile: str | None = field(default=None, kw_only=True, validator=_text)
    ssl_keyfile: str | None = field(default=None, kw_only=True, validator=_text)
    ssl_check_hostname: bool = field(default=True, kw_only=True, validator=_flag)
    ssl_cert_reqs: Literal["required", "none"] = field(default="required", kw_only=True, validator=_one_of("required", "none"))
    prefix: str = field(default="repid", kw_only=True, validator=_prefix)
    queue_type: Literal["classic", "quorum"] = field(default="classic", kw_only=True, validator=_one_of("classic", "quorum"))
    quorum_group_size: int | None = field(default=None, kw_only=True, validator=_whole(1, none="the server's choice"))
    declare: bool = field(default=True, kw_only=True, validator=_flag)
    connect_timeout: timedelta = field(default=timedelta(seconds=5), kw_only=True, validator=_span(timedelta(milliseconds=1)))
    publish_timeout: timedelta = field(default=timedelta(seconds=30), kw_only=True, validator=_span(timedelta(milliseconds=100)))
    reconnect_backoff: tuple[timedelta, timedelta] = field(
        default=(timedelta(milliseconds=100), timedelta(seconds=2)), kw_only=True, converter=_as_pair, validator=_backoff
    )
    heartbeat: timedelta = field(
        default=timedelta(seconds=60), kw_only=True, validator=_span(timedelta(seconds=1), timedelta(hours=1))
    )
    connection_name: str | None = field(default=None, kw_only=True, validator=_text)
    frame_max: Size = field(default=128 << 10, kw_only=True, validator=_whole(4096, 1 << 20))
    max_payload: Size = field(default=16 << 20, kw_only=True, validator=_whole(1, 512 << 20))
    max_unconfirmed: int = field(default=5000, kw_only=True, validator=_whole(1))
    read_ahead: int = field(default=0, kw_only=True, validator=_whole(0))
    max_deliveries: int | None = field(default=5, kw_only=True, validator=_whole(3, none="no limit"))
    consumer_timeout: timedelta | None = field(
        default=None, kw_only=True, validator=_span(timedelta(minutes=1), none="the server's")
    )

    def __attrs_post_init__(self) -> None:
        tls = self._first("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname", "ssl_cert_reqs")
        encrypted = self.target.tls  # and the URL is one
        if tls and not encrypted:
            raise ValueError(f"{tls} is set, but the URL asks for no TLS: write amqps://…")
        if self.ssl_keyfile and not self.ssl_certfile:
            raise ValueError("ssl_keyfile is set without ssl_certfile: give the certificate that the key belongs to")
        if self.auth == "external" and not self.ssl_certfile:
            raise ValueError('auth="external" needs a certificate: give ssl_certfile, and write amqps://…')
        if self.quorum_group_size is not None and self.queue_type != "quorum":
            raise ValueError(f'quorum_group_size={self.quorum_group_size} is for queue_type="quorum": leave it out, or set that')

    def _first(self, *names: str) -> str | None:
        """The first of these that is not left at its default."""
        known = fields(type(self))
        return next((name for name in names if getattr(self, name) != getattr(known, name).default), None)

    @property
    def target(self) -> AMQPURL:
        """The URL, read."""
        return AMQPURL.parse(self.url)
