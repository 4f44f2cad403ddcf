"""What servers say of themselves, and servers of one's own. Nothing here needs a client library."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Sight:
    """What a server has used until now.

    Attributes:
        cpu: Seconds of processor time.
        memory: Bytes that it holds.
        packets: How often it has read from a connection: what was sent together counts once.
    """

    cpu: float
    memory: int
    packets: int


LOOKING = 3  # packets that `look` adds itself: two commands, and the end of the connection


def look(url: str) -> Sight | None:
    """What the server says; None for those that cannot be asked."""
    if not url.startswith("redis:"):
        return None
    facts = dict(line.split(":", 1) for line in ask(url, "INFO").splitlines() if ":" in line)
    cpu = float(facts["used_cpu_user"]) + float(facts["used_cpu_sys"])
    return Sight(cpu, int(facts["used_memory"]), int(facts["total_reads_processed"]))


def ask(url: str, command: str) -> str:
    """Send one command to Redis; its reply as text."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 6379), 5) as link, link.makefile("rwb") as file:
        reply = ""
        for line in (f"SELECT {parts.path.strip('/') or 0}", command):
            file.write(line.encode() + b"\r\n")
            file.flush()
            reply = file.readline().decode().rstrip()
            if reply.startswith("-"):
                raise RuntimeError(f"{url} answered {line!r} with {reply[1:]!r}")
            if reply.startswith("$"):
                reply = file.read(int(reply[1:]) + 2).decode()
        return reply.lstrip("+:")


class Redis:
    """The server that is measured. What is in its database is removed after each measurement.

    Args:
        url: A server that runs already, with an empty database.
        binary: Else what to start, on a free port, without persistence.
    """

    def __init__(self, url: str | None = None, binary: str | None = None) -> None:
        self.url = url or ""
        self._binary = binary or shutil.which("redis-server") or shutil.which("valkey-server")
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        if self.url:
            if (keys := ask(self.url, "DBSIZE")) != "0":
                raise SystemExit(f"{self.url} has {keys} keys, and would be flushed: name an empty database")
            return self
        if self._binary is None:
            raise SystemExit("no redis-server is on the PATH: install one, or name one with --server or --url")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{port}/0"
        self._folder = tempfile.TemporaryDirectory()
        options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", self._folder.name]
        with (Path(self._folder.name) / "log").open("wb") as log:
            self._process = subprocess.Popen([self._binary, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: S603 — as the user says
        patience = time.monotonic() + 10
        while True:
            try:
                ask(self.url, "PING")
            except OSError as error:
                if time.monotonic() > patience or self._process.poll() is not None:
                    self.__exit__(None, None, None)
                    raise SystemExit(f"{self._binary} does not answer") from error
                time.sleep(0.05)
            else:
                return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        if self._folder is not None:
            self._folder.cleanup()

    def clean(self) -> None:
        """Remove all that was left behind."""
        ask(self.url, "FLUSHDB")

    def describe(self) -> str:
        """Which server it is."""
        facts = dict(line.split(":", 1) for line in ask(self.url, "INFO").splitlines() if ":" in line)
        return f"{facts.get('server_name', 'redis').capitalize()} {facts.get('valkey_version', facts['redis_version'])}"


class RabbitMQ:
    """The server that is measured, and that runs already. Each measurement has a virtual host of its own.

    Args:
        url: Where it is, with an administrator who may come from here.
        binary: The `rabbitmqctl` that reaches it.
        policy: One for all queues.
    """

    def __init__(self, url: str | None = None, binary: str | None = None, policy: str | None = None) -> None:
        self._server = (url or "amqp://guest:guest@127.0.0.1:5672").rstrip("/")
        self._policy = policy
        self._ctl = binary or shutil.which("rabbitmqctl")
        self._vhost = ""

    @property
    def url(self) -> str:
        """With the virtual host."""
        return f"{self._server}/{self._vhost}"

    def _tell(self, *arguments: str) -> str:
        done = subprocess.run(  # noqa: S603 — as the user says
            [self._ctl or "", "-q", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise SystemExit(f"rabbitmqctl {arguments[0]}: {done.stdout}{done.stderr}")
        return done.stdout

    def __enter__(self) -> Self:
        if self._ctl is None:
            raise SystemExit("no rabbitmqctl is on the PATH: install RabbitMQ, or name one with --server")
        self._make()
        return self

    def _make(self) -> None:
        self._vhost = f"benchmark-{uuid.uuid4().hex[:8]}"
        self._tell("add_vhost", self._vhost)
        user = urlsplit(self._server).username or "guest"
        self._tell("set_permissions", "-p", self._vhost, user, ".*", ".*", ".*")
        if self._policy is not None:
            self._tell("set_policy", "-p", self._vhost, "benchmark", ".*", self._policy, "--apply-to", "queues")

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None) -> None:
        self._tell("delete_vhost", self._vhost)

    def clean(self) -> None:
        """Remove all that was left behind."""
        self._tell("delete_vhost", self._vhost)
        self._make()

    def describe(self) -> str:
        """Which server it is."""
        status = self._tell("status")
        found = re.search(r"RabbitMQ version: (\S+)", status), re.search(r"Erlang/OTP \d+", status)
        return f"RabbitMQ {found[0][1] if found[0] else '?'}, {found[1][0] if found[1] else 'Erlang'}"
