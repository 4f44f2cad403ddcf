"""The tutorial is followed word by word: its files, its commands, and what they show."""

from __future__ import annotations

import configparser
import os
import shlex
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("termios", reason="terminals of POSIX, and bash")

from repid_core.cli.worker import worker
from tests.integration.transcript import Reader, steps

pytestmark = pytest.mark.examples

FOLDER = Path(__file__).parents[2] / "docs" / "tutorial"
PAGES = sorted(FOLDER.glob("[0-9]*.md"), key=lambda page: int(page.name.partition("-")[0]))
*STORY, LAST = PAGES
REDIS = os.environ.get("REPID_REDIS_URL", "redis://127.0.0.1:6379/0")
RABBITMQ = os.environ.get("REPID_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1/")


def here(folder: Path) -> dict[str, str]:
    """What is different here: the folder, and a port that nobody else has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return {"/home/kim": str(folder.resolve()), "8080": str(server.getsockname()[1])}


def reachable(url: str, port: int) -> bool:
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "localhost", parts.port or port), 2).close()
    except OSError:
        return False
    return True


@pytest.fixture
def prefix() -> Iterator[str]:
    """A prefix of its own on the servers, and nothing left under it in Redis."""
    if not reachable(REDIS, 6379):
        pytest.skip("no Redis server was found (set REPID_REDIS_URL)")
    name = f"tutorial-{uuid.uuid4().hex[:8]}"
    yield name
    import redis

    with redis.Redis.from_url(REDIS) as client:
        keys = list(client.scan_iter(f"*{name}*", count=1000))
        if keys:
            client.delete(*keys)


@pytest.mark.timeout(240)  # for all of it; each output has its own
def test_the_story_word_by_word(tmp_path: Path) -> None:
    with Reader(tmp_path, "bookshop", here(tmp_path)) as reader:
        for page in STORY:
            reader.follow(page)


@pytest.mark.timeout(120)
def test_the_same_application_on_redis(tmp_path: Path, prefix: str) -> None:
    own = {"redis://localhost:6379/0": REDIS, 'prefix = "bookshop"': f'prefix = "{prefix}"'}
    with Reader(tmp_path, "bookshop", here(tmp_path) | own) as reader:
        reader.catch_up(STORY)
        reader.follow(LAST)


def test_what_the_last_page_says_of_rabbitmq(tmp_path: Path, prefix: str) -> None:
    if not reachable(RABBITMQ, 5672):
        pytest.skip("no RabbitMQ server was found (set REPID_RABBITMQ_URL)")
    *_, shown = (step.text for step in steps(LAST) if step.file == "repid.toml")
    text = shown.replace("amqp://guest:guest@localhost/", RABBITMQ).replace("redis://localhost:6379/0", REDIS)
    (tmp_path / "repid.toml").write_text(text.replace('"bookshop"', f'"{prefix}"'), "utf-8")
    command = [sys.executable, "-m", "repid_core", "check"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RabbitMessageBroker" in done.stdout


def test_the_overview_lists_the_pages_and_each_leads_to_the_next() -> None:
    overview = (FOLDER / "README.md").read_text("utf-8")
    titles = [page.read_text("utf-8").partition("\n")[0].removeprefix("# ") for page in PAGES]
    assert [title.partition(".")[0] for title in titles] == [str(number) for number in range(1, len(PAGES) + 1)]
    listed = [line.split(" | ")[0] for line in overview.splitlines() if line.startswith("| [")]
    assert listed == [f"| [{title}]({page.name})" for title, page in zip(titles, PAGES, strict=True)]
    for page, after in pairwise(PAGES):
        assert f"]({after.name})" in page.read_text("utf-8").rpartition("**Next:**")[2]


def test_the_unit_of_systemd_is_one_that_starts_a_worker() -> None:
    [text] = [step.text for page in PAGES for step in steps(page) if step.file.endswith(".service")]
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    command, name, *words = shlex.split(unit["Service"]["ExecStart"])
    assert (Path(command).name, name) == ("repid", "worker")
    with worker.make_context("repid worker", words) as context:
        assert (context.params["targets_"], context.params["processes"]) == (("shop:router",), 2)
    assert int(unit["Service"]["TimeoutStopSec"]) >= 25 + 15  # the grace, and what a worker may take beyond it
