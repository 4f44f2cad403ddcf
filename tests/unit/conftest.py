"""An application in memory, on a clock that the tests move; plugins that tests install."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from repid_core import Connection, InMemoryBucketBroker, InMemoryMessageBroker, Repid, Router, Worker, WorkerSummary
from repid_core.testing.clock import ManualClock

HEADER = "from repid_core.hookspecs import Backend, hookimpl\n"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def connection(clock: ManualClock) -> AsyncIterator[Connection]:
    """Open and bound; checks at the end that nothing is left running."""
    before = asyncio.all_tasks()
    connection = Connection(
        InMemoryMessageBroker(), InMemoryBucketBroker(), InMemoryBucketBroker(use_result_bucket=True), clock=clock
    )
    async with Repid(connection).magic(auto_disconnect=True):
        yield connection
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, f"left running: {left}"


@pytest.fixture
def router() -> Router:
    return Router()


@pytest.fixture
def running(connection: Connection) -> Callable[..., Any]:
    """`async with running(router, …) as worker:` a worker in the background, stopped at the end."""

    @asynccontextmanager
    async def run(*routers: Router, **options: Any) -> AsyncIterator[Worker]:
        worker = Worker(routers=routers, handle_signals=(), connection=connection, **options)
        task = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()
            await task

    return run


@pytest.fixture
def work(connection: Connection) -> Callable[..., Awaitable[WorkerSummary]]:
    """`await work(router, n)` settles n deliveries."""

    async def run(router: Router, messages: int = 1, **options: Any) -> WorkerSummary:
        worker = Worker(routers=[router], messages_limit=messages, handle_signals=(), connection=connection, **options)
        async with asyncio.timeout(10):
            return await worker.run()

    return run


@pytest.fixture
def nothing_but_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugins that happen to be installed beside core are out of sight."""
    real = metadata.entry_points

    def seen(**choice: str) -> list[metadata.EntryPoint]:
        return [
            entry
            for entry in real(**choice)
            if (dist := entry.dist) is None or dist.name == "repid-core" or tmp_path in Path(str(dist.locate_file(""))).parents
            or Path(str(dist.locate_file(""))) == tmp_path
        ]  # fmt: skip

    monkeypatch.setattr(metadata, "entry_points", seen)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Put distributions on the path: `install("repid-x", {"x": "module_x"}, module_x="source")`."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("REPID_DISABLE_PLUGINS", raising=False)
    written: list[str] = []

    def put(distribution: str, entry_points: Mapping[str, str], version: str = "1.0", **modules: str) -> None:
        info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = [f"{name} = {target}" for name, target in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[repid]", *lines, ""]))
        for module, source in modules.items():
            (tmp_path / f"{module}.py").write_text(HEADER + dedent(source))
            written.append(module)
        importlib.invalidate_caches()

    yield put
    for module in written:
        sys.modules.pop(module, None)
