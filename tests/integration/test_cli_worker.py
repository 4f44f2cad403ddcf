"""`repid worker` as processes: one, several under a supervisor, signals, crashes, and code that changes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

APPLICATION = """
    import asyncio, os, sys, time
    from repid_core import Connection, InMemoryMessageBroker, Job, Repid, Router

    router = Router()

    def say(word):
        os.write(1, (word + "\\n").encode())  # at once, whole

    @router.actor(queue="mail")
    async def short(name: str):
        say("started")
        await asyncio.sleep(0.3)
        say("finished")

    @router.actor(queue="mail")
    async def gated():
        say("started")
        while not os.path.exists("gate"):
            await asyncio.sleep(0.01)
        say("finished")

    @router.actor(queue="mail")
    async def endless():
        say("started")
        try:
            await asyncio.Event().wait()
        finally:
            say("interrupted")

    @router.actor(queue="mail")
    async def blocking():
        say("started")
        while True:
            time.sleep(1)

    @router.actor(queue="mail")
    async def fail(number: int):
        say("started")

    async def after_worker_start():
        for name in filter(None, os.environ.get("JOBS", "").split(",")):
            await Job(name, queue="mail", args=["confidential"] if name in ("short", "fail") else None).enqueue()

    def app():
        if os.environ.get("CRASH"):
            os._exit(7)
        return Repid(Connection(InMemoryMessageBroker(), middlewares=[after_worker_start]))
"""


class Command:
    """The command, running. What it logs is JSON, on standard error; what actors print is on standard output."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.seen: list[dict[str, Any]] = []
        self.text = ""

    def until(self, text: str) -> dict[str, Any]:
        """Read what is logged, until a message has this text."""
        for line in self.process.stderr or ():
            self.text += line
            record: dict[str, Any] = json.loads(line) if line.startswith("{") else {"message": line}
            self.seen.append(record)
            if text in record["message"]:
                return record
        pytest.fail(f"it ended, and never said {text!r}: {self.text}")

    def printed(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def send(self, *signals: int) -> None:
        for number in signals:
            self.process.send_signal(number)

    def end(self) -> int:
        """Wait for the end; its exit status."""
        for line in self.process.stderr or ():
            self.text += line
        return self.process.wait(50)


Start = Callable[..., Command]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    (tmp_path / "shop.py").write_text(textwrap.dedent(APPLICATION))
    with contextlib.ExitStack() as stack:

        def run(*options: str, log: str = "json", **variables: str) -> Command:
            process = stack.enter_context(
                subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "repid_core",
                        "worker",
                        "shop:router",
                        "--app",
                        "shop:app",
                        "--log-format",
                        log,
                        *options,
                    ],
                    cwd=tmp_path,
                    env={**os.environ, **variables},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    stdin=subprocess.DEVNULL,
                    text=True,
                    start_new_session=True,
                )
            )
            stack.callback(process.kill)
            return Command(process)

        yield run


def has_ended(pid: int) -> bool:
    """Whether it has, or is just about to."""
    try:
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
    except FileNotFoundError:
        pass
    return True


def test_one_process_says_what_it_serves_and_ends_in_order(start):
    command = start(log="text")
    lines: list[str] = []
    while not lines or "consuming mail" not in lines[-1]:
        lines.append(next(command.process.stderr).rstrip())
    assert lines[0].startswith("repid ")
    assert lines[1:5] == [
        "  messages   InMemoryMessageBroker",
        "  arguments  none",
        "  results    none",
        "  queue      mail: blocking, endless, fail, gated, short",
    ]
    command.send(signal.SIGTERM)
    assert command.end() == 0
    assert "ended: processed 0" in command.text


def test_the_start_is_one_record_for_programs(start):
    command = start("--loop", "asyncio", "--concurrency", "5")
    record = command.until("worker 1 of 1 starts")
    assert record["backends"]["messages"] == "InMemoryMessageBroker"
    assert record["serves"] == {"mail": ["blocking", "endless", "fail", "gated", "short"]}
    assert (record["loop"], record["concurrency"]) == ("asyncio", 5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_lets_the_jobs_of_all_workers_end(start, number, tmp_path):
    command = start("--processes", "2", JOBS="gated")
    assert [command.printed(), command.printed()] == ["started"] * 2
    os.killpg(command.process.pid, number)  # as a terminal does; a worker that got it too would take it for a second one
    command.until("stopping 2 workers")
    (tmp_path / "gate").touch()
    assert command.end() == 0
    assert command.process.stdout.read().split() == ["finished"] * 2


def test_a_second_signal_gives_back_at_once(start):
    command = start("--processes", "1", "--grace", "1000", JOBS="endless")
    assert command.printed() == "started"
    command.send(signal.SIGTERM)
    command.until("stopping 1 workers")
    command.send(signal.SIGINT)
    assert command.end() == 0
    assert command.process.stdout.read().split() == ["interrupted"]
    assert '"rejected": 1' in command.text


def test_a_worker_that_does_not_end_is_killed_and_that_is_told(start):
    """The third signal; without it that happens when the time is over."""
    command = start("--processes", "1", JOBS="blocking")
    assert command.printed() == "started"
    command.send(signal.SIGTERM)
    command.until("stopping")
    command.send(signal.SIGTERM)
    command.until("again")
    command.send(signal.SIGTERM)
    assert command.end() == 1
    assert "does not end, and is killed" in command.text


def pid_of(record: dict[str, Any]) -> int:
    return int(record["message"].partition("(process ")[2].partition(")")[0])


def test_a_worker_that_is_killed_is_started_again(start):
    command = start("--processes", "2")
    first, second = (pid_of(command.until("is up")) for _ in range(2))
    os.kill(first, signal.SIGKILL)
    assert "was ended by SIGKILL; it is started again in 0.5 s" in command.until("SIGKILL")["message"]
    third = pid_of(command.until("is up"))
    assert len({first, second, third}) == 3
    command.send(signal.SIGTERM)
    assert command.end() == 0
    assert all(map(has_ended, (first, second, third)))


def test_one_that_crashes_again_and_again_is_started_after_growing_pauses(start):
    command = start("--processes", "1", CRASH="1")
    assert "ended with status 7; it is started again in 0.5 s" in command.until("started again")["message"]
    assert "ended with status 7; it is started again in 1 s" in command.until("started again")["message"]
    command.send(signal.SIGTERM)
    assert command.end() == 0


@pytest.mark.parametrize("options", [(), ("--processes", "3")], ids=["alone", "supervised"])
def test_a_wrong_command_line_ends_it_and_is_not_tried_again(start, options):
    command = start("--queue", "male", *options)
    assert command.end() == 2
    assert "no actor has queue male: there are mail" in command.text


def test_workers_do_not_outlive_a_supervisor_that_was_killed(start):
    command = start("--processes", "2", "--grace", "0")
    pids = [pid_of(command.until("is up")) for _ in range(2)]
    command.process.kill()
    command.end()  # only when all who have its standard error have ended
    assert command.text.count("the supervisor is gone: stopping") == 2
    assert all(map(has_ended, pids))


def test_the_arguments_of_jobs_are_not_logged(start):
    command = start(JOBS="short,fail", log="json")
    command.until("fail is invalid: what does not fit is number")
    assert command.printed() == "started"
    command.send(signal.SIGTERM)
    assert command.end() == 0
    assert "confidential" not in command.text


def test_code_that_changes_is_loaded_anew_also_once_it_was_broken(start, tmp_path):
    command = start("--reload")
    source = tmp_path / "shop.py"
    first = pid_of(command.until("is up"))
    whole = source.read_text()
    source.write_text(whole + "\n(")
    command.until("shop.py changed: starting anew")
    command.until("waiting for a change of the code")
    assert has_ended(first)
    source.write_text(whole.replace("async def short", "async def brief"))
    assert "brief" in command.until("starts")["serves"]["mail"]
    command.until("is up")
    command.send(signal.SIGINT)
    assert command.end() == 0


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def asked(port: int, path: str) -> tuple[int, str]:
    """Status and reason."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=50) as answer:
            return answer.status, json.load(answer)["status"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)["reason"]


@pytest.mark.parametrize("processes", [(), ("--processes", "1"), ("--processes", "2")], ids=["alone", "one", "two"])
def test_health_is_answered_for_all_workers_on_one_port(start, port, processes):
    command = start(*processes, "--health", str(port), "--grace", "1000", JOBS="endless")
    for _ in range(2 if "2" in processes else 1):
        assert command.printed() == "started"
    command.until("workers are up" if "2" in processes else "is up" if processes else "consuming")
    assert [asked(port, path) for path in ("livez", "readyz", "healthz")] == [(200, "ok")] * 3
    command.send(signal.SIGTERM)
    command.until("stopping" if processes else "waiting for 1 running jobs")
    assert asked(port, "livez") == (200, "ok")
    assert asked(port, "readyz") == (503, "the workers are stopping" if processes else "the worker is stopping")
    command.send(signal.SIGINT)
    assert command.end() == 0


def test_workers_that_do_not_start_are_not_ready(start, port):
    command = start("--processes", "2", "--health", str(port), CRASH="1")
    command.until("started again")
    assert asked(port, "livez") == (200, "ok")
    status, reason = asked(port, "readyz")
    assert status == 503
    assert "workers do not run" in reason or "it is starting" in reason
    command.send(signal.SIGTERM)
    assert command.end() in {0, 1}  # one may crash while it is being stopped


@pytest.mark.parametrize("processes", [(), ("--processes", "2")], ids=["alone", "supervised"])
def test_a_port_that_is_taken_ends_it(start, processes):
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        command = start(*processes, "--health", str(taken))
        assert command.end() == 2
        assert f"cannot listen on 127.0.0.1:{taken}" in command.text
        assert "choose another port" in command.text
