"""Servers for the tests: moto's, and one that says what it is told to."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.request import urlopen

import boto3


def session() -> Any:
    """Credentials that moto takes, as it takes all."""
    return boto3.Session(aws_access_key_id="an-access-key", aws_secret_access_key="a-secret", region_name="us-east-1")  # noqa: S106


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@contextlib.contextmanager
def moto() -> Iterator[str]:
    """moto's server, in a process of its own; its URL."""
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=_die_with_parent,  # noqa: PLW1509 — it calls the system, and nothing of Python's
    )
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 30
    try:
        while True:
            try:
                urlopen(f"{url}/moto-api/", timeout=2).close()  # noqa: S310 — it is http
                break
            except OSError:
                assert process.poll() is None, "moto's server ended"
                assert time.monotonic() < deadline, "moto's server does not answer"
                time.sleep(0.05)
        yield url
    finally:
        process.kill()
        process.wait()


@dataclass
class Request:
    """What came in."""

    line: str
    headers: dict[str, str]
    body: bytes = b""


Answer = Callable[[Request, socket.socket], bytes | None]


@dataclass
class Stub:
    """A server that answers each request with the next of its answers, and the last of them from then on.

    An answer is what is sent, or a function that does with the connection what it likes.
    """

    answers: list[bytes | Answer] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    asks: bool = True  # whether it says that a body may be sent

    def __post_init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._links: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for link in self._links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._socket.accept()
            except OSError:
                return
            self._links.append(link)
            thread = threading.Thread(target=self._serve, args=(link,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, link: socket.socket) -> None:
        with link, link.makefile("rb") as file, contextlib.suppress(OSError):
            while line := file.readline().decode().strip():
                headers = {}
                while header := file.readline().decode().strip():
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                request = Request(line, headers)
                if self.asks and "100-continue" in headers.get("expect", ""):
                    link.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                request.body = file.read(int(headers.get("content-length", 0)))
                self.requests.append(request)
                answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
                said = answer if isinstance(answer, bytes) else answer(request, link)
                if said is None:
                    return
                link.sendall(said)


def reply(status: int, body: str = "", **headers: str) -> bytes:
    """An answer."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body.encode())}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", body]).encode()


def refusal(status: int, code: str, message: str = "", **headers: str) -> bytes:
    """An error, as S3 says it."""
    return reply(
        status, f"<Error><Code>{code}</Code><Message>{message}</Message></Error>", Content_Type="application/xml", **headers
    )


def bucket(data: str, **headers: str) -> bytes:
    """An object of ours."""
    return reply(200, data, x_amz_meta_repid_format="1", **headers)
