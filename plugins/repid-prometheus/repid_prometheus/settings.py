"""What can be set."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any, Final

from attrs import Attribute, field, frozen

_WAIT: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0)
_RUN: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)


def _port(_settings: Any, _attribute: Attribute[Any], value: Any) -> None:
    if value is not None and (type(value) is not int or not 0 <= value <= 65535):
        raise ValueError(f"port={value!r}: give a number from 0 to 65535, or None for no endpoint")


def _address(_settings: Any, _attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, str) or not value:  # sockets take "" for every address
        raise ValueError(f"address={value!r}: give an address; '0.0.0.0' is every one")


def _buckets(_settings: Any, attribute: Attribute[Any], value: Any) -> None:
    if not (
        isinstance(value, tuple)
        and value
        and all(isinstance(bound, int | float) and not isinstance(bound, bool) and 0 < bound < math.inf for bound in value)
        and list(value) == sorted(set(value))
    ):
        raise ValueError(f"{attribute.name}={value!r}: give seconds above 0, each more than the one before")


def _names(_settings: Any, _attribute: Attribute[Any], value: Any) -> None:
    if not (isinstance(value, tuple) and all(isinstance(name, str) and name for name in value)):
        raise ValueError(f"queues={value!r}: give a list of names of queues")


def _flag(_settings: Any, attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{attribute.name}={value!r}: give True or False")  # noqa: TRY004 — settings that are wrong are ValueErrors


def _span(_settings: Any, attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, timedelta) or value < timedelta(milliseconds=10):
        raise ValueError(f"{attribute.name}={value!r}: give a timedelta of at least 10 ms")


def _pairs(_settings: Any, _attribute: Attribute[Any], value: Any) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"max_series={value!r}: give a whole number from 1 on")


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # configuration files have no tuples


@frozen
class PrometheusSettings:
    """Settings of the middleware.

    Attributes:
        port: The TCP port at which a worker answers scrapes while it runs; 0 for any that is free. Default: None, for no
            endpoint.
        address: Where it listens. Default: "127.0.0.1", so that this machine alone can ask; "0.0.0.0" is every address.
        wait_buckets: Upper bounds in seconds of the time from when a job is due until its actor is called. Default: 16 from
            5 ms to an hour.
        run_buckets: Upper bounds in seconds of the time that an actor takes. Default: 16 from 1 ms to 10 minutes.
        queue_depth: Whether workers report how many messages queues hold. Default: True.
        queues: Queues to report besides those that the worker consumes. Default: none.
        depth_interval: How often the broker is asked. A port that could not be had is asked for as often. Default: 15 s.
        depth_timeout: How long it may take to answer for all queues; what it has not answered is NaN. Default: 5 s.
        max_series: The most pairs of queue and actor; further ones are counted as queue "other", actor "other". Default: 1,000.
    """

    port: int | None = field(default=None, kw_only=True, validator=_port)
    address: str = field(default="127.0.0.1", kw_only=True, validator=_address)
    wait_buckets: tuple[float, ...] = field(default=_WAIT, kw_only=True, converter=_as_tuple, validator=_buckets)
    run_buckets: tuple[float, ...] = field(default=_RUN, kw_only=True, converter=_as_tuple, validator=_buckets)
    queue_depth: bool = field(default=True, kw_only=True, validator=_flag)
    queues: tuple[str, ...] = field(default=(), kw_only=True, converter=_as_tuple, validator=_names)
    depth_interval: timedelta = field(default=timedelta(seconds=15), kw_only=True, validator=_span)
    depth_timeout: timedelta = field(default=timedelta(seconds=5), kw_only=True, validator=_span)
    max_series: int = field(default=1000, kw_only=True, validator=_pairs)
