"""What can be set, and what a URL says."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal
from urllib.parse import urlsplit

from attrs import field, frozen


@frozen
class RedisSettings:
    """Interim."""

    url: str = field(default="redis://localhost:6379/0", repr=False)
    prefix: str = field(default="repid", kw_only=True)
    connect_timeout: timedelta = field(default=timedelta(seconds=5), kw_only=True)
    reply_deadline: timedelta = field(default=timedelta(seconds=5), kw_only=True)
    reconnect_backoff: tuple[timedelta, timedelta] = field(
        default=(timedelta(milliseconds=50), timedelta(seconds=2)), kw_only=True
    )
    max_payload: int | None = field(default=None, kw_only=True)

    @property
    def mode(self) -> Literal["standalone", "sentinel", "cluster"]:
        scheme = urlsplit(self.url).scheme
        return "cluster" if "cluster" in scheme else "sentinel" if "sentinel" in scheme else "standalone"


@frozen
class RedisMessageBrokerSettings(RedisSettings):
    """Interim."""

    lease: timedelta = field(default=timedelta(seconds=15), kw_only=True)
    heartbeat_interval: timedelta | None = field(default=None, kw_only=True)
    heartbeat_thread: bool = field(default=True, kw_only=True)
    max_blocked: timedelta = field(default=timedelta(minutes=5), kw_only=True)
    block_timeout: timedelta = field(default=timedelta(seconds=5), kw_only=True)
    max_deliveries: int = field(default=5, kw_only=True)
    fetch_max_bytes: int = field(default=4 << 20, kw_only=True)
    merge_batch: int = field(default=100, kw_only=True)
    merge_bytes: int = field(default=1 << 20, kw_only=True)
    dead_max_age: timedelta | None = field(default=None, kw_only=True)
    dead_max_count: int | None = field(default=100_000, kw_only=True)
    wait_replicas: int = field(default=0, kw_only=True)
    check_eviction_policy: bool = field(default=True, kw_only=True)
