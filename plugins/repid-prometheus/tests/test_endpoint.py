"""What a scraper meets at the port."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from urllib.error import URLError

import pytest

from repid_core import Connection, Job, Router, Worker
from scraping import Watch, read, sample, scrape


def threads() -> list[str]:
    return [
        thread.name for thread in threading.enumerate() if "repid prometheus" in thread.name or "process_request" in thread.name
    ]


@asynccontextmanager
async def running(router: Router) -> AsyncIterator[Worker]:
    started = asyncio.Event()

    @router.actor(name="started", queue="started")
    async def is_started() -> None:
        started.set()

    await Job("started", queue="started").enqueue()
    worker = Worker([router], handle_signals=())
    run = asyncio.create_task(worker.run())
    await started.wait()
    try:
        yield worker
    finally:
        worker.stop()
        await run


async def test_a_scrape(connection: Connection, watch: Watch, router: Router) -> None:
    middleware = watch(port=0)
    assert middleware.port is None
    async with running(router):
        port = middleware.port
        page = await scrape(port)
        assert sample(page, "repid_jobs_started_total", queue="started", topic="started") == 1
        assert "# TYPE repid_job_run_seconds histogram" in page
    assert middleware.port is None
    assert threads() == []
    with pytest.raises(URLError):
        await scrape(port)


async def test_it_answers_while_the_loop_does_not(connection: Connection, watch: Watch, router: Router) -> None:
    """A blocking actor delays no scrape."""
    middleware = watch(port=0)
    async with running(router):
        pages: list[str] = []
        scraper = threading.Thread(target=lambda: pages.append(read(middleware.port)))
        scraper.start()
        scraper.join(30)  # which blocks the loop
        assert pages


async def test_whoever_only_connects_does_not_hold_up_the_end(connection: Connection, watch: Watch, router: Router) -> None:
    middleware = watch(port=0)
    async with running(router):
        idle = socket.create_connection(("127.0.0.1", middleware.port))
        while not any("process_request" in name for name in threads()):
            await asyncio.sleep(0.001)
        began = time.monotonic()
    assert time.monotonic() - began < 8, "not before the client's time is over, which is ten seconds"
    assert threads() == []
    assert idle.recv(1) == b""
    idle.close()


async def test_a_port_that_is_taken(
    connection: Connection, watch: Watch, router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker works, says so once, and takes the port as soon as it is free."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        middleware = watch(port=port, depth_interval=timedelta(milliseconds=10))
        with caplog.at_level(logging.ERROR):
            async with running(router):
                assert middleware.port is None
                start, attempts = middleware._endpoint.start, 0

                def count(registry: object) -> None:
                    nonlocal attempts
                    attempts += 1
                    start(registry)

                middleware._endpoint.start = count
                while attempts < 3:
                    await asyncio.sleep(0.01)
                holder.close()
                while middleware.port is None:
                    await asyncio.sleep(0.01)
                assert "repid_jobs_started_total" in await scrape(port)
    [record] = [record for record in caplog.records if record.name.startswith("repid_prometheus")]
    assert f"metrics cannot be had at 127.0.0.1:{port} (" in record.message
    assert "in use): choose another, or 0 for any" in record.message


async def test_only_this_machine_can_ask(connection: Connection, watch: Watch, router: Router) -> None:
    middleware = watch(port=0)
    async with running(router):
        assert middleware._endpoint._server.server_address[0] == "127.0.0.1"


async def test_a_worker_that_fails_to_start_leaves_nothing(
    connection: Connection, watch: Watch, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    middleware = watch(port=0)

    @router.actor
    async def act() -> None: ...

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr(connection.message_broker, "consumer", refuse)
    with pytest.raises(ConnectionError, match="away"):
        await Worker([router], handle_signals=()).run()
    assert middleware.port is None
    assert threads() == []
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "repid prometheus"]
