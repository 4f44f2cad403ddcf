"""The applications on the pages about synchronous code and web frameworks: their tests and their processes, as shown."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.packages import environment
from tests.integration.test_docs import BLOCKS, ROOT, files_of

for name in ("django", "fastapi", "flask", "gunicorn", "httpx", "uvicorn", "repid_sqlite"):
    pytest.importorskip(name)

pytestmark = [pytest.mark.examples, pytest.mark.skipif(sys.platform == "win32", reason="gunicorn forks")]

HOW_TO = ROOT / "docs" / "how-to"
SYNC, FASTAPI, DJANGO, FLASK = (
    HOW_TO / f"{name}.md" for name in ("enqueue-from-synchronous-code", "use-with-fastapi", "use-with-django", "use-with-flask")
)
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error")


def write(folder: Path, page: Path) -> Path:
    for name, text in files_of(page).items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        before = file.read_text("utf-8") if page == DJANGO and name.endswith("settings.py") else ""
        file.write_text(before + text, "utf-8")
    if not (folder / "pyproject.toml").exists():
        (folder / "pytest.ini").touch()  # so that no configuration of a folder above is found
    return folder


def python(folder: Path, *args: str) -> str:
    """Run it to its end; what it has said."""
    done = subprocess.run(
        [sys.executable, *args],
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@contextmanager
def running(
    folder: Path, *args: str, fd: int | None = None, env: Mapping[str, str] | None = None, stop: int = signal.SIGTERM
) -> Iterator[Path]:
    """A process that serves until it is stopped; it has to end in good order. The file of what it says."""
    log = folder / f"{uuid.uuid4().hex}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *args],
            cwd=folder,
            env={**environment(folder), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=() if fd is None else (fd,),
            start_new_session=True,
        )
    try:
        yield log
        process.send_signal(stop)
        status = process.wait(30)
    except BaseException:
        sys.stderr.write(log.read_text("utf-8"))
        raise
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said = log.read_text("utf-8")
    assert status in (0, -stop), said
    assert not re.search("Traceback|never awaited|was destroyed|ResourceWarning", said), said


@contextmanager
def listening() -> Iterator[tuple[int, str]]:
    """A socket for a server, which is there before the server is; its number and its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.set_inheritable(True)
        yield server.fileno(), f"http://127.0.0.1:{server.getsockname()[1]}"


def ask(url: str, form: Mapping[str, Any] | None = None) -> tuple[int, Any, str | None]:
    """Status, body, and the header Location."""
    data = None if form is None else urllib.parse.urlencode(form).encode()
    with urllib.request.urlopen(url, data, timeout=30) as response:  # noqa: S310 — it is ours
        return response.status, json.load(response), response.headers["Location"]


def ask_until_done(url: str) -> Any:
    """As a client does it: again while the answer is 202."""
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        status, body, _ = ask(url)
        if status != 202:
            return body
        time.sleep(0.05)
    raise AssertionError(f"{url} is pending")


def passed(output: str) -> int:
    return int(re.findall(r"(\d+) passed", output)[0])


def count_tests(page: Path) -> int:
    return sum(len(re.findall(r"def test_", text)) for text in files_of(page).values())


@pytest.mark.parametrize("page", [SYNC, FASTAPI, FLASK], ids=lambda page: page.stem)
def test_what_the_page_tests_passes(page: Path, tmp_path: Path) -> None:
    plugins = () if page == FASTAPI else ("-p", "no:asyncio")  # which tests that are not asynchronous do not need
    assert passed(python(write(tmp_path, page), *PYTEST, *plugins)) == count_tests(page) > 0


def test_fastapi_under_uvicorn_with_a_worker(tmp_path: Path) -> None:
    folder = write(tmp_path, FASTAPI)
    with (
        listening() as (fd, url),
        running(folder, "-m", "uvicorn", "main:api", "--fd", str(fd), fd=fd, stop=signal.SIGINT),
        running(folder, "-m", "repid_core", "worker", "jobs:router", "--app", "jobs:app"),
    ):
        status, body, location = ask(f"{url}/reports?month=2", {})
        assert status == 202
        assert location == body["url"]
        assert ask_until_done(f"{url}{urllib.parse.urlsplit(body['url']).path}") == {
            "status": "done",
            "report": {"month": 2, "orders": 34},
        }
        assert len(ask(f"{url}/years", {})[1]["ids"]) == 12
        assert ask(f"{url}/waiting")[0] == 200
    shown = [block.code for block in BLOCKS if block.page == FASTAPI and block.language == "console"]
    assert '{"status":"done","report":{"month":2,"orders":34}}' in shown[1]


AT_IMPORT = """
from shop import create_app
from shop.jobs import make_thumbnail, repid
from repid_core import Job

repid.enqueue(Job.of(make_thumbnail, result_id="at-import")(name="first"))
app = create_app()
"""


def redis() -> Iterator[dict[str, str]]:
    """The environment that leads to the Redis of this machine, under a prefix of its own, which is removed."""
    client = pytest.importorskip("redis").Redis(socket_connect_timeout=1)
    pytest.importorskip("repid_redis")
    try:
        client.ping()
    except Exception:  # noqa: BLE001 — whatever it is, there is none
        pytest.skip("there is no Redis")
    prefix = f"test-{uuid.uuid4().hex}"
    environ: dict[str, str] = {}
    for section in ("MESSAGE_BROKER", "RESULTS_BUCKET_BROKER"):
        environ |= {
            f"REPID_{section}__BACKEND": "redis",
            f"REPID_{section}__URL": "redis://127.0.0.1:6379/0",
            f"REPID_{section}__PREFIX": prefix,
        }
    try:
        yield environ
    finally:
        if keys := list(client.scan_iter(f"*{prefix}*")):
            client.delete(*keys)
        client.close()


@pytest.fixture(params=["sqlite", "redis"])
def broker(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    if request.param == "redis":
        yield from redis()
    else:
        yield {}


def test_flask_under_gunicorn_with_preload_and_a_job_at_import(tmp_path: Path, broker: dict[str, str]) -> None:
    """The process that is forked has used the connection before; two workers of four threads each enqueue at once."""
    folder = write(tmp_path, FLASK)
    (folder / "wsgi.py").write_text(AT_IMPORT, "utf-8")
    command = next(
        block.code for block in BLOCKS if block.page == FLASK and block.language == "console" and "gunicorn" in block.code
    )
    options = command.split()[2:-1]
    assert "--preload" in options
    access = ("--access-logfile", "-", "--access-logformat", "process %(p)s %(m)s", "--no-control-socket")
    with (
        listening() as (fd, url),
        running(folder, "-m", "gunicorn", *options, *access, "--bind", f"fd://{fd}", "wsgi:app", fd=fd, env=broker) as log,
        running(folder, "-m", "repid_core", "worker", "worker:router", "--app", "worker:queue", env=broker),
        ThreadPoolExecutor(8) as pool,
    ):
        names, locations = [str(number) for number in range(40)], list[str | None]()
        while len(set(re.findall(r"process (\S+) POST", log.read_text("utf-8")))) < 2:  # until both are there, and have enqueued
            locations = list(pool.map(lambda name: ask(f"{url}/thumbnails", {"name": name})[2], names))
        made = list(pool.map(lambda location: ask_until_done(f"{url}{location}"), locations))
        assert [each["path"] for each in made] == [f"/media/{name}.thumb.jpg" for name in names]
        assert ask_until_done(f"{url}/thumbnails/at-import")["status"] == "done"


@pytest.fixture(scope="module")
def django(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, begun with the commands that the page begins with."""
    folder = tmp_path_factory.mktemp("django")
    first = DJANGO.read_text("utf-8").partition("```")[0]
    for command in ("django-admin startproject mysite .", "manage.py startapp orders"):
        assert command in first
    python(folder, "-m", "django", "startproject", "mysite", ".")
    python(folder, "manage.py", "startapp", "orders")
    write(folder, DJANGO)
    python(folder, "manage.py", "makemigrations", "orders")
    python(folder, "manage.py", "migrate", "--verbosity", "0")
    return folder


def test_djangos_tests_pass(django: Path) -> None:
    said = python(django, "manage.py", "test")
    assert f"Ran {count_tests(DJANGO)} tests" in said


def test_django_under_gunicorn_with_the_command_as_worker(django: Path) -> None:
    with (
        listening() as (fd, url),
        running(
            django, "-m", "gunicorn", "--preload", "--workers", "2", "--threads", "4", "--no-control-socket",
            "--bind", f"fd://{fd}", "mysite.wsgi", fd=fd,
        ),
        running(django, "manage.py", "runworker") as log,
        ThreadPoolExecutor(8) as pool,
    ):  # fmt: skip
        orders = list(pool.map(lambda i: ask(f"{url}/orders", {"email": f"{i}@example.com", "cents": i})[1], range(20)))
        for number, order in enumerate(orders):
            assert ask_until_done(f"{url}/receipts/{order['receipt']}") == {"status": "sent", "to": f"{number}@example.com"}
        assert "You paid 0.19." in log.read_text("utf-8")


def test_djangos_asynchronous_views_under_uvicorn_with_the_repid_command(django: Path) -> None:
    with (
        listening() as (fd, url),
        running(
            django, "-m", "uvicorn", "mysite.asgi:application", "--lifespan", "off", "--fd", str(fd), fd=fd, stop=signal.SIGINT
        ),
        running(django, "-m", "repid_core", "worker", "mysite.jobs:router", "--app", "mysite.jobs:app"),
    ):
        order = ask(f"{url}/orders/async", {"email": "kim@example.com", "cents": 1})[1]
        assert ask_until_done(f"{url}/receipts/{order['receipt']}") == {"status": "sent", "to": "kim@example.com"}
