"""Liveness and readiness over HTTP."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from repid_core import health
from repid_core.errors import UsageError
from repid_core.health import HealthCheckServer, HealthCheckServerSettings


class Reasons:
    """What a worker says of itself."""

    live: str | None = None
    ready: str | None = None


@pytest.fixture
def reasons() -> Reasons:
    return Reasons()


@pytest.fixture
async def server(reasons: Reasons) -> AsyncIterator[HealthCheckServer]:
    before = asyncio.all_tasks()
    server = HealthCheckServer(HealthCheckServerSettings(port=0), lambda: reasons.live, lambda: reasons.ready)
    await server.start()
    yield server
    await server.stop()
    assert asyncio.all_tasks() - before == {asyncio.current_task()}


async def hung_up(reader: asyncio.StreamReader) -> bool:
    """Whether the connection ended without an answer."""
    async with asyncio.timeout(2):
        try:
            return await reader.read() == b""
        except ConnectionError:
            return True


async def ask(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers in lower case, and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, body


async def get(server: HealthCheckServer, path: str, method: str = "GET") -> tuple[int, Any]:
    status, _, body = await ask(server.port, f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return status, json.loads(body) if body else None


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz", "/readyz?verbose=1"])
async def test_all_is_well(server, path):
    assert await get(server, path) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("live", "ready", "statuses"),
    [
        (None, "starting", {"/livez": 200, "/readyz": 503, "/healthz": 503}),
        ("stuck", None, {"/livez": 503, "/readyz": 503, "/healthz": 503}),
    ],
)
async def test_what_is_wrong_is_503_with_the_reason(server, reasons, live, ready, statuses):
    """A worker that is not ready lives all the same; one that does not live is not ready."""
    reasons.live, reasons.ready = live, ready
    for path, status in statuses.items():
        problem = {"status": "unavailable", "reason": live or ready}
        assert await get(server, path) == (status, {"status": "ok"} if status == 200 else problem)


async def test_a_check_that_raises_is_503_and_harms_nobody(caplog):
    def broken() -> str | None:
        raise LookupError("no such consumer")

    server = HealthCheckServer(HealthCheckServerSettings(port=0), lambda: None, broken)
    await server.start()
    status, body = await get(server, "/readyz")
    assert status == 503
    assert "no such consumer" in body["reason"]
    assert "a health check failed" in caplog.text
    assert await get(server, "/livez") == (200, {"status": "ok"})
    await server.stop()


async def test_the_headers_say_what_the_body_is(server):
    status, headers, body = await ask(server.port, b"GET /livez HTTP/1.1\r\n\r\n")
    assert (status, headers["content-type"], headers["content-length"]) == (200, "application/json", str(len(body)))
    assert (headers["cache-control"], headers["connection"]) == ("no-store", "close")


async def test_head_is_get_without_the_body(server, reasons):
    full = await ask(server.port, b"GET /readyz HTTP/1.1\r\n\r\n")
    assert await ask(server.port, b"HEAD /readyz HTTP/1.1\r\n\r\n") == (*full[:2], b"")
    reasons.ready = "starting"
    assert (await get(server, "/readyz", "HEAD"))[0] == 503


async def test_other_paths_and_methods(server):
    status, body = await get(server, "/metrics")
    assert (status, body["reason"]) == (404, "try /livez, /readyz or /healthz")
    status, headers, _ = await ask(server.port, b"POST /livez HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
    assert (status, headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "request_", [b"\r\n\r\n", b"GET /livez\r\n\r\n", b"\x16\x03\x01\xff\xfe\r\n\r\n", b"GET /livez HTTP/1.1\r\nX: " + 9000 * b"x"]
)
async def test_what_is_no_request_is_400(server, request_):
    """Among it TLS, and a head over 8 KiB."""
    assert (await ask(server.port, request_))[0] == 400
    assert await get(server, "/livez") == (200, {"status": "ok"})


async def test_a_client_that_sends_half_a_request_and_leaves(server):
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /li")
    writer.close()
    await writer.wait_closed()
    assert await get(server, "/livez") == (200, {"status": "ok"})


async def test_a_slow_client_is_hung_up_on(server, monkeypatch):
    """After five seconds, which this test does not wait for."""
    assert health._SECONDS == 5
    monkeypatch.setattr(health, "_SECONDS", 0.01)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /livez")
    assert await hung_up(reader)
    writer.close()


async def test_stopping_hangs_up_and_frees_the_port(caplog):
    before = asyncio.all_tasks()
    server = HealthCheckServer(HealthCheckServerSettings(port=0), lambda: None, lambda: None)
    await server.start()
    port = server.port
    clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
    await get(server, "/livez")  # by now it has met them all
    async with asyncio.timeout(2):
        await server.stop()
        await server.stop()
    assert asyncio.all_tasks() == before
    for reader, writer in clients:
        assert await hung_up(reader)
        writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    again = HealthCheckServer(HealthCheckServerSettings(port=port), lambda: None, lambda: None)
    await again.start()
    await again.stop()
    assert not caplog.records


async def test_a_port_in_use_is_named_with_what_to_do():
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        server = HealthCheckServer(HealthCheckServerSettings(port=port), lambda: None, lambda: None)
        with pytest.raises(UsageError, match=rf"cannot listen on 127\.0\.0\.1:{port} \(.*in use.*\): stop what holds it"):
            await server.start()
        await server.stop()


async def test_an_endpoint_of_ones_own():
    server = HealthCheckServer(HealthCheckServerSettings(port=0, endpoint_name="/up"), lambda: None, lambda: "starting")
    await server.start()
    assert (await get(server, "/up"))[0] == 503
    assert (await get(server, "/healthz"))[0] == 404
    await server.stop()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": -1}, "port=-1.*from 0 to 65535"),
        ({"port": 65536}, "port=65536"),
        ({"port": "8080"}, "port='8080'"),
        ({"endpoint_name": "up"}, "endpoint_name='up'.*begins with '/'"),
        ({"endpoint_name": None}, "endpoint_name=None"),
        ({"endpoint_name": "/up?x"}, "endpoint_name='/up.x'.*without ' '"),
        ({"address": ""}, "address=''.: give an address"),
        ({"address": None}, "address=None.: give an address"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UsageError, match=message):
        HealthCheckServerSettings(**settings)


def test_by_default_this_machine_alone_can_ask():
    assert HealthCheckServerSettings() == HealthCheckServerSettings("127.0.0.1", 8080, "/healthz")
