"""RabbitMQ nodes that tests start, kill and stop, on free ports, each in a folder of its own."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PATIENCE = 60.0  # seconds: a node takes some to start
_FOLDERS = ("/usr/lib/rabbitmq/bin", "/usr/local/lib/rabbitmq/bin", "/opt/rabbitmq/sbin")
_GREETING = b"AMQP\x00\x00\x09\x01"


def binary(name: str) -> str | None:
    """One of RabbitMQ's programs; not the wrapper on the PATH of Debian, which wants to be somebody else."""
    for folder in _FOLDERS:
        if (path := Path(folder) / name).exists():
            return str(path)
    return shutil.which(name)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(true: Callable[[], Any], what: str, patience: float = _PATIENCE) -> Any:
    """Wait until it is so; what it gave."""
    deadline = time.monotonic() + patience
    while True:
        with contextlib.suppress(OSError):
            if value := true():
                return value
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.05)


def listens(port: int) -> bool:
    """Whether somebody does, here."""
    socket.create_connection(("127.0.0.1", port), 1).close()
    return True


def greets(host: str, port: int) -> bool:
    """Whether an AMQP server answers there."""
    with socket.create_connection((host, port), 1) as link:
        link.sendall(_GREETING)
        return link.recv(1) == b"\x01"


def named(host: str, port: int) -> str:
    """What a server is, with its version, as it says in its first frame."""
    with socket.create_connection((host, port), 10) as link:
        link.sendall(_GREETING)
        said = link.recv(4096)
    product = said.partition(b"\x07productS")[2]
    version = said.partition(b"\x07versionS")[2]
    return " ".join(text[4 : 4 + int.from_bytes(text[:4], "big")].decode() for text in (product, version))


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Node:
    """One node.

    Args:
        folder: Where it keeps its data and its log.
        config: Lines for its `rabbitmq.conf`.
        advanced: Terms about the application `rabbit` for its `advanced.config`: what has no name in `rabbitmq.conf`.
        tls: Files with the authority, its certificate and its key: then it listens for TLS too, on `tls_port`.
        ask: With TLS, whether clients must show a certificate.
    """

    def __init__(
        self,
        folder: Path,
        config: str = "",
        *,
        advanced: str = "",
        tls: tuple[str, str, str] | None = None,
        ask: bool = False,
    ) -> None:
        self.folder = folder
        self.port, self.tls_port, self._dist_port, self._epmd_port = (free_port() for _ in range(4))
        self.name = f"repid{self.port}@localhost"
        self.process: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"listeners.tcp.local = 127.0.0.1:{self.port}", "loopback_users.guest = false", "log.file.level = warning"]
        if tls is not None:
            authority, certificate, key = tls
            lines += [
                f"listeners.ssl.local = 127.0.0.1:{self.tls_port}",
                f"ssl_options.cacertfile = {authority}",
                f"ssl_options.certfile = {certificate}",
                f"ssl_options.keyfile = {key}",
                f"ssl_options.verify = {'verify_peer' if ask else 'verify_none'}",
                f"ssl_options.fail_if_no_peer_cert = {'true' if ask else 'false'}",
            ]
        (folder / "rabbitmq.conf").write_text("\n".join([*lines, config]) + "\n")
        (folder / "advanced.config").write_text(f"[{{rabbit, [{advanced}]}}].\n")
        (folder / "plugins").write_text("[].\n")
        (folder / "env").write_text("")

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def _environment(self) -> dict[str, str]:
        own = {
            "HOME": self.folder,
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_DIST_PORT": self._dist_port,
            "RABBITMQ_MNESIA_BASE": self.folder / "data",
            "RABBITMQ_LOG_BASE": self.folder / "log",
            "RABBITMQ_PID_FILE": self.folder / "pid",
            "RABBITMQ_CONFIG_FILE": self.folder / "rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": self.folder / "advanced.config",
            "RABBITMQ_CONF_ENV_FILE": self.folder / "env",
            "RABBITMQ_ENABLED_PLUGINS_FILE": self.folder / "plugins",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none",
            "RUNNING_UNDER_SYSTEMD": 1,  # so that the script becomes the server, and does not stand beside it
            "ERL_EPMD_PORT": self._epmd_port,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP_SECONDS": 0,
        }
        return {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))} | {
            name: str(value) for name, value in own.items()
        }

    def start(self) -> Node:
        """Start it, and wait until it answers."""
        self.launch()
        self.wait()
        return self

    def launch(self) -> None:
        """Start it, from the main thread: it ends with the thread that has started it."""
        server, epmd = binary("rabbitmq-server"), shutil.which("epmd")
        assert server is not None
        with (self.folder / "output").open("ab") as output:

            def spawn(*command: str) -> subprocess.Popen[bytes]:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=self.folder,
                    env=self._environment,
                    start_new_session=True,
                    preexec_fn=_die_with_parent,  # noqa: PLW1509 — it calls the system, and nothing of Python's
                )

            if self._epmd is None and epmd is not None:  # else the node starts one that outlives it
                self._epmd = spawn(epmd, "-port", str(self._epmd_port), "-address", "127.0.0.1")
                eventually(lambda: listens(self._epmd_port), "epmd")
            self.process = spawn(server)

    def wait(self) -> None:
        """Until it answers."""

        def answers() -> bool:
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"the node ended: {(self.folder / 'output').read_text()[-3000:]}")
            return greets("127.0.0.1", self.port)

        eventually(answers, f"{self.name} does not answer")

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """As a crash would."""
        self._signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
            self.process = None

    def pause(self) -> None:
        """Let it stand still."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        self.resume()
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None

    def ctl(self, *arguments: str) -> str:
        """What `rabbitmqctl` says."""
        program = binary("rabbitmqctl")
        assert program is not None
        done = subprocess.run(
            [program, "-n", self.name, "-q", *arguments],
            env=self._environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def stop_app(self) -> None:
        """Stop RabbitMQ in an orderly way, but not the node."""
        self.ctl("stop_app")

    def start_app(self) -> None:
        self.ctl("start_app")
        self.wait()

    def alarm(self) -> None:
        """Have it think that its memory is used up."""
        self.ctl("set_vm_memory_high_watermark", "0.0000001")

    def calm(self) -> None:
        self.ctl("set_vm_memory_high_watermark", "0.4")

    def add_vhost(self, name: str) -> None:
        self.ctl("add_vhost", name)
        self.ctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")

    def add_user(self, name: str, password: str, *, configure: str = "", write: str = "", read: str = "") -> None:
        """A user with these rights, as patterns, in the virtual host `/`."""
        self.ctl("add_user", name, password)
        self.ctl("set_permissions", name, configure or "^$", write or "^$", read or "^$")

    def queues(self) -> dict[str, dict[str, Any]]:
        """All queues by name."""
        text = self.ctl("list_queues", "--formatter", "json", "name", "type", "messages", "messages_unacknowledged", "arguments")
        return {queue["name"]: queue for queue in json.loads(text)}

    def exchanges(self) -> list[str]:
        """The names of all exchanges."""
        return [exchange["name"] for exchange in json.loads(self.ctl("list_exchanges", "--formatter", "json", "name"))]

    def connections(self) -> list[dict[str, Any]]:
        """All connections."""
        found = json.loads(self.ctl("list_connections", "--formatter", "json", "user", "client_properties", "state", "channels"))
        assert isinstance(found, list)
        return found

    def close_connections(self, reason: str) -> None:
        """As an operator would."""
        self.ctl("close_all_connections", reason)
