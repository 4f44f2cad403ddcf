"""Answers scrapes over HTTP, from threads, so that neither waits for the other: the loop and the scrape."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from contextlib import suppress
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app

logger = logging.getLogger(__name__)

_POLL = 0.05  # seconds until it is seen that the server is to stop


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds that a client may say nothing

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 — the name is the base class's
        logger.debug(format, *args)


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each request, which ends with the server."""

    daemon_threads = False
    block_on_close = True

    def __init__(self, address: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._clients: set[socket.socket] = set()
        super().__init__((address, port), _Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # that of HTTP asks the DNS for a name which nobody needs
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._clients.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._clients.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a scrape by %s failed", client_address, exc_info=sys.exception())

    def server_close(self) -> None:
        """Hang up on those who ask, and wait for their threads."""
        for client in list(self._clients):
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        super().server_close()


class Endpoint:
    """Serves a registry's metrics at every path.

    Args:
        address: Where to listen.
        port: The port; 0 takes any that is free.
    """

    def __init__(self, address: str, port: int) -> None:
        self._address, self._port = address, port
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int | None:
        """The port that it listens on; None if it does not."""
        return None if self._server is None else self._server.server_port

    def start(self, registry: Any) -> None:
        """Listen, unless it does.

        Raises:
            OSError: The address or port cannot be had.
        """
        if self._server is not None:
            return
        self._server = server = _Server(self._address, self._port)
        server.set_app(make_wsgi_app(registry))
        self._thread = threading.Thread(target=server.serve_forever, args=(_POLL,), name="repid prometheus", daemon=True)
        self._thread.start()
        logger.info("metrics at http://%s:%d/metrics", self._address, server.server_port)

    def stop(self) -> None:
        """Stop listening, and hang up; blocks for a moment. Idempotent."""
        server, thread = self._server, self._thread
        self._server = self._thread = None
        if server is not None and thread is not None:
            server.shutdown()
            thread.join()
            server.server_close()
