"""Liveness and readiness over HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import suppress

from attrs import field, frozen

from repid_core.errors import UsageError

logger = logging.getLogger(__name__)

_LIMIT, _SECONDS = 8192, 5.0  # bytes and time that a request's head may take
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


@frozen
class HealthCheckServerSettings:
    """Where a worker answers health checks.

    Attributes:
        address: The address to listen on; by default this machine alone can ask.
        port: The TCP port; 0 takes any that is free.
        endpoint_name: A path that answers as `/readyz` does.
    """

    address: str = field(default="127.0.0.1")
    port: int = field(default=8080)
    endpoint_name: str = field(default="/healthz")

    @address.validator
    def _check_address(self, _: object, address: str) -> None:
        if not (isinstance(address, str) and address):  # asyncio takes "" for every address
            raise UsageError(f"HealthCheckServerSettings(address={address!r}): give an address; '0.0.0.0' is every one")

    @port.validator
    def _check_port(self, _: object, port: int) -> None:
        if type(port) is not int or not 0 <= port <= 65535:
            raise UsageError(f"HealthCheckServerSettings(port={port!r}): give a number from 0 to 65535")

    @endpoint_name.validator
    def _check_endpoint(self, _: object, name: str) -> None:
        if not str(name).startswith("/") or set(name) & set(" ?#"):  # nobody could ask for it
            raise UsageError(
                f"HealthCheckServerSettings(endpoint_name={name!r}): give a path that begins with '/', without ' ', '?' and '#'"
            )


class HealthCheckServer:
    """Answers `/livez`, `/readyz`, and the endpoint of the settings, with 200 or 503 and the reason as JSON.

    Args:
        settings: Where.
        live: Gives None, or why the worker should be restarted.
        ready: Gives None, or why it is not at work.
    """

    def __init__(
        self,
        settings: HealthCheckServerSettings,
        live: Callable[[], str | None],
        ready: Callable[[], str | None],
    ) -> None:
        self._settings, self._live, self._ready = settings, live, ready
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._settings.port if self._server is None else int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Listen.

        Raises:
            UsageError: The address or port cannot be had.
        """
        address, port = self._settings.address, self._settings.port
        try:
            self._server = await asyncio.start_server(self._accept, address, port, limit=_LIMIT, start_serving=False)
            await self._server.start_serving()
        except OSError as error:
            await self.stop()
            raise UsageError(
                f"the health check server cannot listen on {address}:{port} ({error.strerror or error}): "
                "stop what holds it, or choose another port",
            ) from error

    async def stop(self) -> None:
        """Stop listening, and hang up on who is connected. Idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # it came in just now
            writer.close()
            return
        task = asyncio.ensure_future(self._answer(reader, writer))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_SECONDS):
                try:
                    head = await reader.readuntil(b"\r\n\r\n")
                except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                    head = b""
                writer.write(self._reply(head))
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError):
            logger.debug("a health check was broken off")
        finally:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()

    def _reply(self, head: bytes) -> bytes:
        words = head.split(b"\r\n", 1)[0].split()
        if len(words) != 3 or not words[2].startswith(b"HTTP/"):
            return _response(400, "this is no HTTP request")
        method, path = words[0].decode("latin-1"), words[1].decode("latin-1").split("?", 1)[0]
        if path not in {"/livez", "/readyz", self._settings.endpoint_name}:
            return _response(404, f"try /livez, /readyz or {self._settings.endpoint_name}", method)
        if method not in {"GET", "HEAD"}:
            return _response(405, "use GET", method)
        try:
            problem = self._live() or (None if path == "/livez" else self._ready())
        except Exception as error:
            logger.exception("a health check failed")
            problem = f"the check itself failed: {error!r}"
        return _response(503 if problem else 200, problem, method)


def _response(status: int, reason: str | None, method: str = "GET") -> bytes:
    content = {"status": "ok"} if reason is None else {"status": "unavailable" if status == 503 else "error", "reason": reason}
    body = json.dumps(content).encode()
    allow = "Allow: GET, HEAD\r\n" if status == 405 else ""
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"{allow}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method == "HEAD" else body)
