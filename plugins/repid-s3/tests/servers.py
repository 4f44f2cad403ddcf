"""Servers for the tests: moto's, SeaweedFS, and one that says what it is told to."""

from __future__ import annotations

import contextlib
import ctypes
import json
import platform
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import boto3
import botocore.session
import pytest
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import create_loader

on_both_servers = pytest.mark.parametrize("s3_url", ["moto", "seaweedfs"], indirect=True)


_DESCRIPTIONS = create_loader()  # of S3, a megabyte of JSON, which each session would read for itself


def session() -> Any:
    """Credentials that SeaweedFS knows; moto takes all."""
    core = botocore.session.Session()
    core.register_component("data_loader", _DESCRIPTIONS)
    return boto3.Session(
        aws_access_key_id="an-access-key",
        aws_secret_access_key="a-secret",  # noqa: S106
        region_name="us-east-1",
        botocore_session=core,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@contextlib.contextmanager
def started(command: list[str], log: Path, url: str) -> Iterator[None]:
    """A server in a process of its own, from when it answers HTTP until it is killed."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 — it calls the system, and nothing of Python's
        )
    deadline = time.monotonic() + 60
    try:
        while not _answers(url):
            assert process.poll() is None, f"{command[0]} ended: {log.read_text('utf-8', 'replace')[-2000:]}"
            assert time.monotonic() < deadline, f"{command[0]} does not answer: {log.read_text('utf-8', 'replace')[-2000:]}"
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        urlopen(url, timeout=5).close()  # noqa: S310 — it is http
    except HTTPError:
        return True
    except OSError:
        return False
    return True


@contextlib.contextmanager
def moto() -> Iterator[str]:
    """moto's server; its URL."""
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with TemporaryDirectory() as place, started(command, Path(place) / "log", f"http://127.0.0.1:{port}/moto-api/"):
        yield f"http://127.0.0.1:{port}"


def weed() -> str | None:
    """SeaweedFS's program, which a wheel puts beside Python."""
    found = Path(sysconfig.get_path("scripts")) / "weed"
    return str(found) if found.exists() else None


def wheel_of_weed_exists() -> bool:
    """Whether there is a wheel of SeaweedFS for this platform, as pyproject.toml has it."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


@dataclass
class Seaweed:
    """SeaweedFS on loopback.

    Attributes:
        program: Its program.
        place: A directory for what it stores.
    """

    program: str
    place: Path

    def __post_init__(self) -> None:
        names = ("master", "volume", "filer", "s3")
        self._ports = {f"{name}.port{more}": free_port() for name in names for more in ("", ".grpc")}
        self.url = f"http://127.0.0.1:{self._ports['s3.port']}"

    @contextlib.contextmanager
    def running(self) -> Iterator[Seaweed]:
        """From when it stores objects until it is killed."""
        made = session().get_credentials()
        keys = {"accessKey": made.access_key, "secretKey": made.secret_key}
        identity = {"name": "tests", "credentials": [keys], "actions": ["Admin"]}
        (self.place / "s3.json").write_text(json.dumps({"identities": [identity]}), "utf-8")
        options: dict[str, object] = {
            **self._ports,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "master.telemetry": "false",
            "dir": self.place,
            "filer": "true",
            "filer.localSocket": self.place / "filer.sock",
            "s3": "true",
            "s3.localSocket": self.place / "s3.sock",
            "s3.config": self.place / "s3.json",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "volume.max": 0,
            "master.volumeSizeLimitMB": 64,
        }
        command = [self.program, "server", *(f"-{name}={value}" for name, value in options.items())]
        with started(command, self.place / "weed.log", self.url):
            self._stores()
            yield self

    @property
    def version(self) -> str:
        """What it is, for reports."""
        said = subprocess.run([self.program, "version"], capture_output=True, text=True, timeout=100, check=True).stdout
        [number] = re.findall(r" (\d+\.\d+) ", said)
        return f"SeaweedFS {number}"

    def _stores(self) -> None:
        """Its parts find each other some time after they answer."""
        client, deadline = session().client("s3", endpoint_url=self.url), time.monotonic() + 60
        while True:
            try:
                client.create_bucket(Bucket="ready")
                client.put_object(Bucket="ready", Key="a", Body=b"1")
                break
            except (ClientError, BotoCoreError):
                assert time.monotonic() < deadline, (self.place / "weed.log").read_text("utf-8", "replace")[-2000:]
                time.sleep(0.1)
        client.close()

    def shell(self, command: str) -> str:
        """A command of its operators; what it says."""
        ports = self._ports
        master = f"127.0.0.1:{ports['master.port']}.{ports['master.port.grpc']}"
        filer = f"127.0.0.1:{ports['filer.port']}.{ports['filer.port.grpc']}"
        done = subprocess.run(
            [self.program, "shell", f"-master={master}", f"-filer={filer}"],
            input=f"{command}\nexit\n",
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
        return f"{done.stdout}{done.stderr}"

    def age(self, client: Any, bucket: str, seconds: int) -> None:
        """Make what a bucket has older than it is: its records are saved, changed and loaded."""
        saved, before = self.place / "records", _times(client, bucket)
        self.shell(f"fs.meta.save -o {saved} /buckets/{bucket}")
        records = saved.read_bytes()
        for stored in sorted(set(before.values())):
            records = records.replace(_modified(stored), _modified(stored - seconds))
        saved.write_bytes(records)
        self.shell(f"fs.meta.load {saved}\nfs.du /buckets/{bucket}")  # it leaves its last record out if nothing comes after it
        assert _times(client, bucket) == {key: stored - seconds for key, stored in before.items()}

    def run_lifecycle(self) -> None:
        """What it does once a day by itself: delete what the rules of all buckets say.

        It reads the log of what was stored, by default no more than 1000 records of it, and other tests have stored a lot.
        """
        self.shell(f"s3.lifecycle.run-shard -shards 0-15 -events 1000000 -s3 127.0.0.1:{self._ports['s3.port.grpc']}")


def _times(client: Any, bucket: str) -> dict[str, int]:
    return {each["Key"]: int(each["LastModified"].timestamp()) for each in client.list_objects_v2(Bucket=bucket)["Contents"]}


def _modified(seconds: int) -> bytes:
    """The field for the time of the last change in a record of SeaweedFS, the second of a message of Protocol Buffers."""
    field_, rest = bytearray([2 << 3]), seconds
    while rest > 0x7F:
        field_.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*field_, rest])


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
