"""The proxy that tests of brokers break connections with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from repid_core.testing.proxy import FaultProxy


@pytest.fixture
def heard() -> list[bytes]:
    return []


@pytest.fixture
async def proxy(heard: list[bytes]) -> AsyncIterator[FaultProxy]:
    """Before a server that says everything twice."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            heard.append(data)
            writer.write(2 * data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with FaultProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        yield proxy
        while opened:
            opened.pop().close()
    server.close()
    await server.wait_closed()


opened: list[asyncio.StreamWriter] = []


async def connect(proxy: FaultProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    connection = await asyncio.open_connection("127.0.0.1", proxy.port)
    opened.append(connection[1])
    return connection


async def say(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], data: bytes) -> bytes:
    connection[1].write(data)
    async with asyncio.timeout(5):
        try:
            return await connection[0].read(1000)
        except ConnectionError:
            return b""


async def test_it_passes_bytes_both_ways(proxy: FaultProxy) -> None:
    assert await say(await connect(proxy), b"a") == b"aa"
    assert proxy.connections == 1


async def test_cut_ends_connections_and_takes_new_ones(proxy: FaultProxy) -> None:
    connection = await connect(proxy)
    assert await say(connection, b"a") == b"aa"
    proxy.cut()
    assert await say(connection, b"a") == b""
    assert await say(await connect(proxy), b"b") == b"bb"


async def test_refuse_takes_none_until_accept(proxy: FaultProxy) -> None:
    proxy.refuse()
    assert await say(await connect(proxy), b"a") == b""
    proxy.accept()
    assert await say(await connect(proxy), b"a") == b"aa"


async def test_stall_holds_bytes_until_accept(proxy: FaultProxy, heard: list[bytes]) -> None:
    connection = await connect(proxy)
    proxy.stall()
    answer = asyncio.create_task(say(connection, b"a"))
    await asyncio.sleep(0.05)
    assert not answer.done()
    assert heard == []
    proxy.accept()
    assert await answer == b"aa"


async def test_a_reply_is_swallowed_once_and_the_request_goes_through(proxy: FaultProxy, heard: list[bytes]) -> None:
    proxy.swallow_replies(b"b")
    connection = await connect(proxy)
    assert await say(connection, b"a") == b"aa"
    assert await say(connection, b"b") == b""
    assert heard == [b"a", b"b"]
    assert proxy.swallowed == 1
    assert await say(await connect(proxy), b"b") == b"bb"


async def test_stop_leaves_nothing_running(proxy: FaultProxy) -> None:
    before = asyncio.all_tasks()
    async with FaultProxy(*proxy.target) as other:
        await say(await connect(other), b"a")
        proxies = asyncio.all_tasks() - before
        assert proxies
    await asyncio.sleep(0)
    assert all(task.done() for task in proxies)
