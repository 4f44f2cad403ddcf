"""Where the servers are."""

from __future__ import annotations

from abc import ABC, abstractmethod

from redis.asyncio.connection import AbstractConnection, Connection, parse_url

from repid_redis.settings import RedisSettings


class Topology(ABC):
    """Interim."""

    address: str

    @abstractmethod
    async def connect(self, node: str | None = None) -> AbstractConnection: ...

    @abstractmethod
    async def node_of(self, key: str) -> str: ...

    async def refresh(self) -> None: ...


class Standalone(Topology):
    def __init__(self, settings: RedisSettings) -> None:
        options = dict(parse_url(settings.url))
        options.pop("connection_class", None)
        self.options = options
        self.address = f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"

    async def connect(self, node: str | None = None) -> AbstractConnection:
        connection = Connection(**self.options, socket_timeout=None, socket_connect_timeout=5, protocol=2)
        await connection.connect()
        return connection

    async def node_of(self, key: str) -> str:
        return self.address


def topology(settings: RedisSettings) -> Topology:
    return Standalone(settings)
