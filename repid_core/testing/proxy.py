"""A TCP proxy that does to connections what networks do: for tests of brokers that talk to a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

_CHUNK = 1 << 16


class FaultProxy:
    """Stands between clients and a server, and breaks what a test asks it to break.

    ::

        async with FaultProxy("127.0.0.1", 6379) as proxy:
            broker = MyBroker(f"redis://127.0.0.1:{proxy.port}")
            await broker.connect()
            proxy.refuse()
            ...
            proxy.accept()

    Args:
        host: Of the server.
        port: Of the server; it may be changed later, for new connections.

    Attributes:
        port: Where clients connect, on 127.0.0.1; set by `start`.
        swallowed: How many replies were swallowed.
    """

    def __init__(self, host: str, port: int) -> None:
        self.target = host, port
        self.port = 0
        self.swallowed = 0
        self._server: asyncio.Server | None = None
        self._pairs: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = {}
        self._refusing = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._swallow: Callable[[bytes], bool] | None = None

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._pairs)

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close everything. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        self.accept()
        tasks = list(self._pairs)
        self.cut()
        await asyncio.gather(*tasks, return_exceptions=True)
        if server is not None:
            await server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        await self.stop()

    def cut(self) -> None:
        """Cut all connections, both ways, without a goodbye. New ones may be made."""
        for writers in self._pairs.values():
            for writer in writers:
                writer.transport.abort()

    def refuse(self) -> None:
        """Cut all connections, and every new one at once, until `accept`."""
        self._refusing = True
        self.cut()

    def accept(self) -> None:
        """Let connections be made again, and bytes flow."""
        self._refusing = False
        self._flowing.set()

    def stall(self) -> None:
        """Let connections stand, but no byte pass, until `accept`: as when a cable is pulled."""
        self._flowing.clear()

    def swallow_replies(self, request: bytes | Callable[[bytes], bool] = b"") -> None:
        """Let the next request through that has these bytes in it, or that the function wants, but not its reply.

        The connection is cut then: the server has done what the client will never hear of. It happens once.
        """
        self._swallow = request if callable(request) else lambda data: request in data

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if self._refusing or task is None:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        self._pairs[task] = writer, far_writer
        swallowing = asyncio.Event()
        try:
            ways = [
                asyncio.create_task(self._up(reader, far_writer, swallowing)),
                asyncio.create_task(self._down(far_reader, writer, swallowing)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        finally:
            del self._pairs[task]
            for each in (writer, far_writer):
                each.transport.abort()

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, swallowing: asyncio.Event) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                await self._flowing.wait()
                if self._swallow is not None and self._swallow(data):
                    self._swallow = None
                    swallowing.set()
                writer.write(data)
                await writer.drain()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, swallowing: asyncio.Event) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                await self._flowing.wait()
                if swallowing.is_set():
                    self.swallowed += 1
                    return
                writer.write(data)
                await writer.drain()
