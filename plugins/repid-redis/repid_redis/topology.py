"""Where the servers are, and new connections to them."""

from __future__ import annotations

import asyncio
import random
import socket
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    DefaultParser,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from repid_redis.settings import RedisSettings
from repid_redis.url import Node

_T = TypeVar("_T")

_SLOTS: Final = 1 << 14
_KEEPALIVE: Final = {
    number: value
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
    if (number := getattr(socket, name, None)) is not None
}


class _Pushing(DefaultParser):  # type: ignore[misc, valid-type] # the name is public, and says nothing of its type
    """Lets through what the server pushes; redis-py swallows what it has no handler for."""

    async def handle_push_response(self, response: Any, **_: Any) -> Any:
        return response


class Topology(ABC):
    """Where the servers of one broker are.

    Attributes:
        address: For errors: hosts and ports, and no password.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self._url = url = settings.target
        self.address = url.address
        self._timeout = settings.connect_timeout.total_seconds()
        self._secrets = [secret for secret in (url.password, settings.sentinel_password) if secret]
        self._options: dict[str, Any] = {
            "username": url.username,
            "password": url.password,
            "client_name": settings.client_name,
            "protocol": 2,
            "socket_timeout": None,  # who uses the connection has limits of its own
            "socket_connect_timeout": None,  # `connect` has a limit for all that it does
            "socket_read_size": 1 << 18,
            "retry": Retry(NoBackoff(), 0),
            "health_check_interval": 0,
        }
        self._tls: dict[str, Any] = {
            "ssl_ca_certs": settings.ssl_ca_certs,
            "ssl_certfile": settings.ssl_certfile,
            "ssl_keyfile": settings.ssl_keyfile,
            "ssl_check_hostname": settings.ssl_check_hostname and settings.ssl_cert_reqs != "none",
            "ssl_cert_reqs": settings.ssl_cert_reqs,
        }
        self._trust: Any = None  # what TLS connections share, until a file changes: the system's authorities take long to load
        self._trusted: list[int] = []

    async def connect(self, node: str | None = None, *, pushes: bool = False) -> AbstractConnection:
        """A new connection, ready for commands.

        Args:
            node: "host:port" of the node of a cluster; None for the primary, or any node.
            pushes: Whether it speaks RESP3, and `read_response(push_request=True)` gives what the server pushes.

        Raises:
            RedisError: The server refuses, or is none.
            OSError: It cannot be reached. TimeoutError: it did not answer within `connect_timeout`.
        """
        options: dict[str, Any] = {"protocol": 3, "parser_class": _Pushing} if pushes else {}
        return await _within(self._timeout, self._answering(node, options))

    async def _answering(self, node: str | None, options: dict[str, Any]) -> AbstractConnection:
        """A connection to a server that serves: one that loads its data, has no place, or hangs is found out here."""
        connection = await self._connect(node, options)
        try:
            await _ask(connection, "PING")
        except NoPermissionError:
            pass  # it answers
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    @abstractmethod
    async def _connect(self, node: str | None, options: dict[str, Any]) -> AbstractConnection: ...

    async def node_of(self, key: str | bytes) -> str | None:
        """Which node serves a key; None where there is but one."""
        return None

    async def refresh(self) -> None:
        """Look anew where the servers are. Where that is asked at each connection, nothing is to be done."""

    async def _open(self, node: Node, options: dict[str, Any]) -> AbstractConnection:
        options = {
            **self._options,
            "host": node.host,
            "port": node.port,
            "socket_keepalive": True,
            "socket_keepalive_options": _KEEPALIVE,
            **options,
        }
        return await self._ready(self._secured(options) if self._url.tls else Connection(**options))

    def _secured(self, options: dict[str, Any]) -> SSLConnection:
        changed = []
        for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
            if file := self._tls[name]:
                try:
                    changed.append(Path(file).stat().st_mtime_ns)
                except OSError as error:  # TLS would not say which of them
                    raise FileNotFoundError(f"{name}={file!r} cannot be read: {error.strerror}") from error
        connection = SSLConnection(**self._tls, **options)
        if self._trust is None or changed != self._trusted:
            self._trust, self._trusted = connection.ssl_context, changed
        connection.ssl_context = self._trust
        return connection

    async def _ready(self, connection: AbstractConnection) -> AbstractConnection:
        for name in ("driver_info", "lib_name", "lib_version"):  # as one or the other version of redis-py calls it
            setattr(connection, name, None)  # a server that is full hangs up: what it says is read, if little is sent to it
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException as error:
            await connection.disconnect(nowait=True)
            if isinstance(error, RedisError) and any(secret in str(error) for secret in self._secrets):
                # Old servers, and proxies, answer what they do not know with a copy of it.
                kind = ResponseError if isinstance(error, ResponseError) else RedisConnectionError
                raise kind("it knows no HELLO, or no AUTH") from None
            raise
        return connection


async def _within(seconds: float, step: Coroutine[Any, Any, _T]) -> _T:
    try:
        async with asyncio.timeout(seconds):
            return await step
    except TimeoutError:
        raise TimeoutError(f"no answer within {seconds:g} s") from None


async def _ask(connection: AbstractConnection, *command: Any) -> Any:
    await connection.send_command(*command, check_health=False)
    return await connection.read_response()


class Standalone(Topology):
    """One server."""

    async def _connect(self, node: str | None, options: dict[str, Any]) -> AbstractConnection:
        options["db"] = self._url.db or 0
        if self._url.socket is not None:
            return await self._ready(UnixDomainSocketConnection(path=self._url.socket, **{**self._options, **options}))
        return await self._open(self._url.nodes[0], options)


class Sentinel(Topology):
    """One primary that sentinels know the place of. They are asked at each connection: it may have moved."""

    def __init__(self, settings: RedisSettings) -> None:
        super().__init__(settings)
        self.address = f"{self._url.service!r} of the sentinels {self.address}"
        self._sentinels = list(self._url.nodes)
        self._to_sentinel = {
            "username": settings.sentinel_username,
            "password": settings.sentinel_password,
        }

    async def _connect(self, node: str | None, options: dict[str, Any]) -> AbstractConnection:
        options["db"] = self._url.db or 0
        problems: list[str] = []
        reason: Exception | None = None
        share = self._timeout / (len(self._sentinels) + 1)  # of the time: one that hangs leaves some to the others
        tried: set[Node] = set()
        for sentinel in list(self._sentinels):
            try:
                primary = await _within(share, self._primary(sentinel))
            except (RedisError, OSError) as error:
                hint = ", see sentinel_username and sentinel_password" if isinstance(error, AuthenticationError) else ""
                problems.append(f"{sentinel}: {error}{hint}")
                reason = error
                continue
            if primary is None:
                problems.append(f"{sentinel} knows no {self._url.service!r}")
            elif primary not in tried:
                tried.add(primary)
                try:
                    connection = await self._serving(primary, options)
                except AuthenticationError:
                    raise
                except (RedisError, OSError) as error:
                    problems.append(f"{sentinel} names {primary}: {error}")
                    reason = error
                else:
                    self._sentinels.remove(sentinel)
                    self._sentinels.insert(0, sentinel)  # the first to be asked the next time
                    return connection
        raise RedisConnectionError(f"no sentinel names a primary that serves ({'; '.join(problems)})") from reason

    async def _primary(self, sentinel: Node) -> Node | None:
        """Where a sentinel says that the primary is."""
        connection = await self._open(sentinel, dict(self._to_sentinel))
        try:
            found = await _ask(connection, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._url.service)
        finally:
            await connection.disconnect(nowait=True)
        return found and Node(found[0].decode(), int(found[1]))

    async def _serving(self, primary: Node, options: dict[str, Any]) -> AbstractConnection:
        """A connection to the primary, which is asked as well: sentinels learn late of what happens."""
        connection = await self._open(primary, options)
        try:
            role, *_ = await _ask(connection, "ROLE")
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        if role != b"master":
            await connection.disconnect(nowait=True)
            raise RedisConnectionError("it is no primary any more")
        return connection


class Cluster(Topology):
    """Nodes that share the keys by their slots. The map is kept until `refresh`."""

    def __init__(self, settings: RedisSettings) -> None:
        super().__init__(settings)
        self._starts: list[int] = []  # the first slot of each range, in order
        self._ranges: list[tuple[int, str]] = []  # its last slot, and its node
        self._version = 0  # of the map, failed attempts to get one included
        self._failure: Exception | None = None  # of the last attempt
        self._turn: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def _connect(self, node: str | None, options: dict[str, Any]) -> AbstractConnection:
        if node is None:
            node = await self.node_of(b"")
        place = Node.parse(node)
        return await self._open(place if place.host else Node(self._url.nodes[0].host, place.port), options)

    async def node_of(self, key: str | bytes) -> str:
        """Which node serves a key.

        Raises:
            RedisError: No node serves it, or none answers.
            OSError: No node can be reached.
        """
        if not self._ranges:
            await self.refresh()
        slot = key_slot(key.encode() if isinstance(key, str) else key)
        position = bisect_right(self._starts, slot) - 1
        if position < 0 or self._ranges[position][0] < slot:
            raise RedisConnectionError(f"no node of the cluster serves slot {slot} of {_SLOTS:,}")
        return self._ranges[position][1]

    async def refresh(self) -> None:
        loop, seen = asyncio.get_running_loop(), self._version
        if self._turn is None or self._loop is not loop:
            self._turn, self._loop = asyncio.Lock(), loop
        async with self._turn:
            if self._version == seen:  # else somebody has looked meanwhile
                self._failure = None
                try:
                    await _within(self._timeout, self._look())
                except (RedisError, OSError) as error:
                    self._failure = error
                self._version += 1
            if self._failure is not None:
                raise self._failure

    async def _look(self) -> None:
        """Ask the nodes for the map, one after the other until one has it."""
        known = list({node: None for _, node in self._ranges})
        random.shuffle(known)
        nodes = list(dict.fromkeys([*map(Node.parse, known), *self._url.nodes]))
        share = self._timeout / len(nodes)
        reason: Exception | None = None
        for node in nodes:
            try:
                rows = await _within(share, self._rows(node))
            except (RedisError, OSError) as error:
                reason = error
                continue
            if rows:
                ordered = sorted((int(first), int(last), str(_named(primary, node))) for first, last, primary, *_ in rows)
                self._starts = [first for first, _, _ in ordered]
                self._ranges = [(last, name) for _, last, name in ordered]
                return
        if reason is not None:
            raise reason
        raise RedisConnectionError("the cluster gives its slots to no node yet")

    async def _rows(self, node: Node) -> Any:
        connection = await self._open(node, {})
        try:
            return await _ask(connection, "CLUSTER", "SLOTS")
        finally:
            await connection.disconnect(nowait=True)


def _named(primary: Any, asked: Node) -> Node:
    """The node of a row; one that does not know its own name gives none, and is the one that was asked."""
    host = (primary[0] or b"").decode()
    return Node(host if host not in {"", "?"} else asked.host, int(primary[1]))


def topology(settings: RedisSettings) -> Topology:
    """Where the servers are that the settings name. Nothing is opened."""
    kinds: dict[str, type[Standalone | Sentinel | Cluster]] = {"standalone": Standalone, "sentinel": Sentinel, "cluster": Cluster}
    return kinds[settings.mode](settings)
