"""The benchmark of brokers: it measures what it says, whoever is slow, incomplete or broken. How fast is none of its business."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# They are in the repository alone, and not in the tree where wheels are tested.
pytest.importorskip("benchmarks.brokers", reason="there are no benchmarks here")

from benchmarks.brokers.actors import ACTORS  # noqa: E402
from benchmarks.brokers.peer import Peer, UnsupportedError  # noqa: E402
from benchmarks.brokers.report import table  # noqa: E402
from benchmarks.brokers.rounds import MEASURES, Candidate, Rounds, Row, failures  # noqa: E402


class Folder(Peer):
    """A queue of files, for tests need no server."""

    def __init__(self, url: str, queue: str, *, results: bool) -> None:
        super().__init__(url, queue, results=results)
        self.folder, self.numbers = Path(url) / queue, count()

    async def open(self) -> None:
        self.folder.mkdir(exist_ok=True)

    async def close(self) -> None: ...

    async def enqueue(self, actor: str, i: int, data: str) -> Any:
        self.put(f"job-{next(self.numbers):08}-{os.getpid()}", [actor, i, data])
        return i

    async def enqueue_all(self, actor: str, jobs: Sequence[tuple[int, str]]) -> None:
        for i, data in jobs:
            await self.enqueue(actor, i, data)

    async def result(self, handle: int) -> int:
        while not (file := self.folder / f"result-{handle}").exists():
            await asyncio.sleep(0.001)
        return int(file.read_text())

    def put(self, name: str, content: Any) -> None:
        new = self.folder / f"new-{name}"
        new.write_text(json.dumps(content))
        new.rename(self.folder / name)

    async def run(self, actor: str, i: int, data: str) -> None:
        self.put(f"result-{i}", await ACTORS[actor](i, data))

    async def work(self, concurrency: int) -> None:
        await self.open()
        tasks = set()
        while True:
            for file in sorted(self.folder.glob("job-*")):
                job = json.loads(file.read_text())
                file.unlink()
                tasks.add(asyncio.create_task(self.run(*job)))
            await asyncio.sleep(0.001)


class Meagre(Folder):
    """As a synchronous library would be."""

    concurrency = 1
    many_producers = False

    async def enqueue_all(self, actor: str, jobs: Sequence[tuple[int, str]]) -> None:
        raise UnsupportedError

    async def result(self, handle: int) -> int:
        raise UnsupportedError


class Broken(Folder):
    async def open(self) -> None:
        raise RuntimeError("no server to be found")


class Forgetful(Folder):
    """It loses jobs."""

    async def enqueue(self, actor: str, i: int, data: str) -> Any:
        return await super().enqueue(actor, i, data) if i < 3 else None


class Place:
    """The folder that is measured in the place of a server."""

    def __init__(self, folder: Path) -> None:
        self.url = str(folder)

    def clean(self) -> None:
        for left in Path(self.url).iterdir():
            shutil.rmtree(left)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    yield Place(tmp_path)
    assert not list(tmp_path.iterdir()), "something was left behind"


def measure(place: Place, *kinds: type[Peer], only: Sequence[str], seconds: float = 10, rounds: int = 1) -> list[Row]:
    candidates = {kind.__name__: Candidate(f"tests.integration.test_benchmarks:{kind.__name__}") for kind in kinds}
    return list(Rounds(place, candidates, jobs=30, seconds=seconds, latencies=3, sleepers=4, idle=0.2, only=only).run(rounds))


def test_all_is_measured(place: Place) -> None:
    rows = measure(place, Folder, only=MEASURES)
    assert failures(rows) == []
    assert [row.measure for row in rows] == list(MEASURES)
    figures = {row.measure: row.figures for row in rows}
    for name in ("seq", "conc", "bulk", "c1", "c100", "c1000", "roundtrip"):
        assert figures[name]["jobs"] == 30
        assert figures[name]["per_second"] > 0
    assert 0 < figures["latency"]["p50_ms"] <= figures["latency"]["p99_ms"] < 1000
    assert 0.99 <= figures["sleeper"]["total_s"] < 3
    assert figures["c100"]["rss_mb"] > 5
    assert 0 < figures["idle"]["cpu_percent"] < 100


def test_what_a_library_lacks_is_left_out(place: Place) -> None:
    rows = measure(place, Meagre, only=["seq", "c1", "conc", "c100", "bulk", "roundtrip", "sleeper"])
    assert failures(rows) == []
    assert {row.measure for row in rows if row.figures} == {"seq", "c1"}


def test_a_library_that_fails_is_named_and_the_others_go_on(place: Place) -> None:
    rows = measure(place, Broken, Folder, only=["seq", "c1"])
    assert failures(rows) == [f"Broken, {name}, round 1: RuntimeError: no server to be found" for name in ("seq", "c1")]
    assert {row.measure for row in rows if row.peer == "Folder" and row.figures} == {"seq", "c1"}


def test_what_is_not_done_in_time_counts_as_far_as_it_went(place: Place) -> None:
    [_, row] = measure(place, Forgetful, only=["seq", "c1"], seconds=1)
    assert row.figures["jobs"] == 3
    assert row.figures["per_second"] > 10, "the clock runs while jobs end, not until the time is over"


def test_nobody_is_always_the_first(place: Place) -> None:
    rows = measure(place, Folder, Meagre, only=["seq"], rounds=2)
    assert [(row.peer, row.number) for row in rows] == [("Folder", 1), ("Meagre", 1), ("Meagre", 2), ("Folder", 2)]


def test_the_table_has_medians_spreads_and_ratios_within_rounds() -> None:
    def rows(peer: str, **figures: tuple[float, ...]) -> list[Row]:
        return [Row(peer, n, measure, {"per_second": value, "p50_ms": value})
                for measure, values in figures.items() for n, value in enumerate(values, 1)]  # fmt: skip

    lines = table(
        [
            *rows("repid", seq=(100, 400, 200), latency=(1, 2, 4)),
            *rows("slow", seq=(10, 10, 10), latency=(8, 8, 8)),
            *rows("fast", seq=(50, 100, 400), conc=(7, 7, 7), latency=(5, 5, 5)),
            *rows("raw-list", seq=(1000, 1000, 1000)),
        ]
    ).splitlines()
    assert lines[0] == (
        "| median of 3 (min–max) | repid | slow | fast | raw-list | repid ÷ best other queue | repid ÷ best raw client |"
    )
    assert "| enqueue, one after another, jobs/s ↑ | 200 (100–400) | 10 (10–10) | 100 (50–400) |" in lines[2]
    assert "| 2 (0.5–4) fast | 0.2 (0.1–0.4) raw-list |" in lines[2]
    assert "| enqueue, 100 producers, jobs/s ↑ | – | – | 7 (7–7) | – | – | – |" in lines
    assert "| 0.4 (0.2–0.8) fast | – |" in lines[-1]


@pytest.mark.examples
def test_redis_is_measured() -> None:
    pytest.importorskip("repid_redis", reason="repid-redis is not installed")
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        if os.environ.get("CI"):
            pytest.fail("no redis-server was found")
        pytest.skip("no redis-server was found")
    sizes = ["--rounds=1", "--jobs=100", "--latencies=3", "--sleepers=5", "--only=conc,c100,bulk,c1000,latency,roundtrip,sleeper"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.brokers", "redis", f"--server={binary}", "--without=raw-list", *sizes],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Failed" not in done.stdout, done.stdout
    rows = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    ours = {row["measure"]: row["figures"] for row in rows if row["peer"] == "repid"}
    assert ours["c100"]["jobs"] == ours["c1000"]["jobs"] == 100
    assert ours["sleeper"]["jobs"] == 5
    assert ours["c100"]["server_us"] > 0
    assert 100 < ours["conc"]["bytes"] < 5000
    assert "| enqueue, 100 producers, jobs/s ↑ |" in done.stdout


@pytest.mark.examples
def test_the_benchmark_of_s3() -> None:
    pytest.importorskip("repid_s3")
    command = [sys.executable, str(ROOT / "benchmarks" / "s3.py"), "--rounds", "1", "--requests", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=55, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n| ") == 10 + (sys.platform == "linux")  # which says how much memory is taken


def test_the_benchmark_of_synchronous_calls() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "sync.py"), "--rounds", "1", "--jobs", "200"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=55, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nmemory, ") == 3


@pytest.mark.examples
def test_the_benchmark_of_serializers() -> None:
    pytest.importorskip("repid_msgspec")
    command = [sys.executable, str(ROOT / "benchmarks" / "serializers.py"), "--rounds", "1", "--seconds", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=55, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n| ") == 15
