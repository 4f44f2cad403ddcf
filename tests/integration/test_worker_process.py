"""A worker as a process of its own: signals, shutdown, exit status, health. Sentence W5 of the contract."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

APPLICATION = """
    import asyncio, signal, sys, threading, time
    from repid_core import (
        Connection, HealthCheckServerSettings, InMemoryMessageBroker, Job, Queue, Repid, Router, Worker
    )

    router = Router()

    def say(*words):
        print(*words, flush=True)

    @router.actor
    async def short():
        say("started")
        await asyncio.sleep(0.3)
        say("finished")

    @router.actor
    async def endless():
        say("started")
        try:
            await asyncio.Event().wait()
        finally:
            say("interrupted")

    @router.actor
    def stuck():
        say("started")
        threading.Event().wait()

    @router.actor(run_in_process=True)
    def in_process():
        say("started")
        time.sleep(0.3)
        say("finished")

    def before(number, frame):
        say("the handler before")

    async def main(name, port=None, **options):
        if port is not None:
            options.update(run_health_check_server=True, health_check_server_settings=HealthCheckServerSettings(port=port))
        connection = Connection(InMemoryMessageBroker())
        async with Repid(connection).magic(auto_disconnect=True):
            await Job(name).enqueue()
            summary = await Worker([router], **options).run()
            stats = await Queue().stats()
            say(f"succeeded={summary.succeeded} rejected={summary.rejected} failed={summary.failed} ready={stats.ready}")
            if stats.ready:
                message = await anext(Queue().get_messages())
                say(f"tried={message.parameters.tried}")

    if __name__ == "__main__":
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, before)
        asyncio.run(main(sys.argv[1], **eval(sys.argv[2])))
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
"""


class Application:
    """The script, running."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines = iter(process.stdout or ())

    def line(self) -> str:
        return next(self._lines).strip()

    def send(self, *signals: int, group: bool = False) -> None:
        for number in signals:
            if group:  # as a terminal does
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)

    def end(self, timeout: float) -> list[str]:
        """What it says from here on, once it has ended with status 0; its last words are the handlers' that it restored."""
        assert self._process.wait(timeout) == 0
        *lines, first, second = (line.strip() for line in self._lines)
        assert [first, second] == ["the handler before"] * 2
        return lines


Start = Callable[..., Application]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(actor, option=…)` runs a worker with one job of this actor, and waits until it has begun."""
    script = tmp_path / "application.py"
    script.write_text(textwrap.dedent(APPLICATION))
    with contextlib.ExitStack() as stack:

        def run(name: str, **options: Any) -> Application:
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-W", "error", str(script), name, repr(options)],
                    stdout=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                )
            )
            stack.callback(process.kill)
            application = Application(process)
            assert application.line() == "started"
            return application

        yield run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("actor", ["short", "in_process"])
def test_one_signal_lets_jobs_end(start, number, actor):
    """Also a job in a process, which gets the signal too if the terminal sends it."""
    application = start(actor)
    application.send(number, group=True)
    assert application.end(timeout=5) == ["finished", "succeeded=1 rejected=0 failed=0 ready=0"]


def test_a_second_signal_gives_jobs_back_at_once_with_no_attempt_counted(start):
    application = start("endless", graceful_shutdown_time=60)
    application.send(signal.SIGTERM)
    time.sleep(0.1)  # two signals at once are one
    application.send(signal.SIGTERM)
    assert application.end(timeout=2) == ["interrupted", "succeeded=0 rejected=1 failed=0 ready=1", "tried=0"]


def test_jobs_that_do_not_end_in_time_are_given_back(start):
    application = start("endless", graceful_shutdown_time=0.1)
    application.send(signal.SIGINT)
    assert application.end(timeout=2)[:2] == ["interrupted", "succeeded=0 rejected=1 failed=0 ready=1"]


def test_a_stuck_thread_does_not_keep_the_process_from_ending(start):
    """Graceful time, and two seconds of patience."""
    application = start("stuck", graceful_shutdown_time=0.2)
    begun = time.monotonic()
    application.send(signal.SIGTERM)
    [summary, tried] = application.end(timeout=3.5)
    assert (summary, tried) == ("succeeded=0 rejected=1 failed=0 ready=1", "tried=0")
    assert time.monotonic() - begun >= 0.2


def test_health_is_answered_while_it_runs(start, unused_tcp_port):
    application = start("endless", graceful_shutdown_time=0.0, port=unused_tcp_port)
    for path in ("livez", "readyz", "healthz"):
        with urllib.request.urlopen(f"http://127.0.0.1:{unused_tcp_port}/{path}", timeout=2) as answer:
            assert (answer.status, json.load(answer)) == (200, {"status": "ok"})
    application.send(signal.SIGTERM)
    assert application.end(timeout=3)[0] == "interrupted"
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{unused_tcp_port}/livez", timeout=2)
