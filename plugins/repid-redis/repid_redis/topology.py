"""Where the servers are, and new connections to them."""

from __future__ import annotations

import asyncio
import random
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from repid_redis.settings import RedisSettings

_KEEPALIVE: Final = {
    number: value
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
    if (number := getattr(socket, name, None)) is not None
}


class Topology(ABC):
    """Where the servers of one broker are.

    Attributes:
        address: For errors: host and port, and no password.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._url = url = settings.address
        self.address = str(url)
        self._timeout = settings.connect_timeout.total_seconds()
        self._options: dict[str, Any] = {
            "username": settings.username or url.username,
            "password": settings.password or url.password,
            "client_name": settings.client_name,
            "protocol": 2,
            "socket_timeout": None,  # the links have limits of their own
            "socket_connect_timeout": self._timeout,
            "socket_read_size": 1 << 18,
            "retry": Retry(NoBackoff(), 0),
            "health_check_interval": 0,
        }
        self._secure: dict[str, Any] = {}
        if url.tls:
            self._secure = {
                "ssl_ca_certs": settings.ssl_ca_certs,
                "ssl_certfile": settings.ssl_certfile,
                "ssl_keyfile": settings.ssl_keyfile,
                "ssl_check_hostname": settings.ssl_check_hostname and settings.ssl_cert_reqs != "none",
                "ssl_cert_reqs": settings.ssl_cert_reqs,
            }

    @abstractmethod
    async def connect(self, node: str | None = None) -> AbstractConnection:
        """A new connection, ready for commands.

        Args:
            node: "host:port" of the node of a cluster; None for the primary, or any node.

        Raises:
            RedisError: The server refuses, or is none.
            OSError: It cannot be reached.
        """

    async def node_of(self, key: str) -> str | None:
        """Which node serves a key; None where there is but one."""
        return None

    async def refresh(self) -> None:
        """Look anew where the servers are."""

    async def _open(self, host: str, port: int, **options: Any) -> AbstractConnection:
        kind = SSLConnection if self._secure else Connection
        return await self._ready(
            kind(
                host=host,
                port=port,
                socket_keepalive=True,
                socket_keepalive_options=_KEEPALIVE,
                **{**self._options, **self._secure, **options},
            )
        )

    async def _ready(self, connection: AbstractConnection) -> AbstractConnection:
        try:
            async with asyncio.timeout(self._timeout):
                await connection.connect()  # type: ignore[no-untyped-call]
        except TimeoutError:
            await connection.disconnect(nowait=True)
            raise TimeoutError(f"it did not answer within {self._timeout:g} s") from None
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    @staticmethod
    async def _ask(connection: AbstractConnection, *command: Any) -> Any:
        await connection.send_command(*command)
        return await connection.read_response()


class Standalone(Topology):
    """One server."""

    async def connect(self, node: str | None = None) -> AbstractConnection:
        options = {"db": self._url.database}
        if self._url.path is not None:
            return await self._ready(UnixDomainSocketConnection(path=self._url.path, **self._options, **options))
        [(host, port)] = self._url.hosts
        return await self._open(host, port, **options)


class Sentinel(Topology):
    """One primary that sentinels know the place of. It is asked for at each connection."""

    def __init__(self, settings: RedisSettings) -> None:
        super().__init__(settings)
        self._sentinels = list(self._url.hosts)
        self.address = f"{self._url.service} of the sentinels {self.address}"

    async def connect(self, node: str | None = None) -> AbstractConnection:
        host, port = await self._primary()
        connection = await self._open(host, port, db=self._url.database)
        try:
            role = (await self._ask(connection, "ROLE"))[0]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        if role not in (b"master", "master"):
            await connection.disconnect(nowait=True)
            raise RedisConnectionError(f"{host}:{port} is no primary any more, whatever the sentinels say")
        return connection

    async def _primary(self) -> tuple[str, int]:
        problems = []
        for sentinel in list(self._sentinels):
            host, port = sentinel
            try:
                connection = await self._open(
                    host,
                    port,
                    username=self._settings.sentinel_username,
                    password=self._settings.sentinel_password,
                    socket_connect_timeout=self._timeout / len(self._sentinels),
                )
                try:
                    async with asyncio.timeout(self._timeout):
                        found = await self._ask(connection, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._url.service)
                finally:
                    await connection.disconnect(nowait=True)
            except (RedisError, OSError) as error:
                problems.append(f"{host}:{port}: {error}")
                continue
            if found is not None:
                self._sentinels.remove(sentinel)
                self._sentinels.insert(0, sentinel)  # the first to be asked the next time
                return found[0].decode(), int(found[1])
            problems.append(f"{host}:{port} knows no service {self._url.service!r}")
        raise RedisConnectionError(f"no sentinel names a primary ({'; '.join(problems)})")


class Cluster(Topology):
    """Nodes that share the keys by their slots. The map is kept until `refresh`."""

    def __init__(self, settings: RedisSettings) -> None:
        super().__init__(settings)
        self._slots: list[tuple[int, int, str]] = []
        self._known: list[tuple[str, int]] = list(self._url.hosts)
        self._looking: asyncio.Task[None] | None = None

    async def connect(self, node: str | None = None) -> AbstractConnection:
        if node is None:
            node = await self.node_of("")
        host, _, port = node.rpartition(":")
        return await self._open(host, int(port))

    async def node_of(self, key: str) -> str:
        if not self._slots:
            await self.refresh()
        slot = key_slot(key.encode())
        for first, last, node in self._slots:
            if first <= slot <= last:
                return node
        raise RedisConnectionError(f"no node of the cluster serves slot {slot}")

    async def refresh(self) -> None:
        if self._looking is None or self._looking.done() or self._looking.get_loop() is not asyncio.get_running_loop():
            self._looking = asyncio.create_task(self._look(), name="repid redis cluster")
        await asyncio.shield(self._looking)

    async def _look(self) -> None:
        hosts = self._known[:]
        random.shuffle(hosts)
        problem: Exception = RedisConnectionError("no node answers")
        for host, port in _unique((*hosts, *self._url.hosts)):
            try:
                connection = await self._open(host, port)
                try:
                    async with asyncio.timeout(self._timeout):
                        found = await self._ask(connection, "CLUSTER", "SLOTS")
                finally:
                    with suppress(RedisError):
                        await connection.disconnect(nowait=True)
            except (RedisError, OSError) as error:
                problem = error
                continue
            if found:
                slots = [(int(row[0]), int(row[1]), f"{(row[2][0] or b'').decode() or host}:{row[2][1]}") for row in found]
                self._slots = slots
                self._known = [(node.rpartition(":")[0], int(node.rpartition(":")[2])) for *_, node in slots]
                return
        raise problem


def _unique(hosts: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    return list(dict.fromkeys(hosts))


def topology(settings: RedisSettings) -> Topology:
    """Where the servers are that the URL names. Nothing is opened."""
    kinds: dict[str, type[Standalone | Sentinel | Cluster]] = {"standalone": Standalone, "sentinel": Sentinel, "cluster": Cluster}
    mode = settings.mode
    if mode == "standalone" and len(settings.address.hosts) > 1:
        raise ValueError("one server has one host: begin the URL with redis+sentinel:// or redis+cluster:// for several")
    return kinds[mode](settings)
