"""`app.sync()` on real brokers, in processes that fork: parent and children each get on, and neither disturbs the other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")

BACKENDS = {
    "sqlite": "SqliteMessageBroker({file!r})",
    "redis": "RedisMessageBroker('redis://127.0.0.1:6379/0', prefix=prefix)",
    "rabbitmq": "RabbitMessageBroker('amqp://guest:guest@127.0.0.1:5672/', prefix=prefix)",
}
PROGRAM = """
    import asyncio, gc, os, sys, threading, uuid, warnings
    from {package} import *
    from repid_core import *
    from repid_core.errors import MessageBrokerError

    warnings.filterwarnings("ignore", "This process .* is multi-threaded")  # Python 3.12 says so of forks during a call
    prefix = f"test-{{uuid.uuid4().hex}}"
    app = Repid(Connection({broker}))
    repid, parent = app.sync(), os.getpid()

    def fork(*expected):
        pid = os.fork()
        if pid == 0:
            said = []
            for _ in range(2):
                try:
                    repid.enqueue(Job("x"))
                except MessageBrokerError as error:
                    said.append("forked" in str(error))
                gc.collect()
            sys.stdout.flush()
            sys.exit(0 if said == list(expected) else repr(said))  # with all that an interpreter does at its end
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    try:
        repid.connect()
    except Exception as error:
        print("away", error)
        sys.exit()
    try:
        {code}
    finally:
        if os.getpid() == parent:
            repid.run(Queue().delete)
"""
IDLE = """
        repid.enqueue(Job("x"))
        print([fork() for _ in range(3)])
        repid.enqueue(Job("x"))
        print(repid.run(Queue().stats).ready)
"""
UNDER_WAY = """
        begun, go, done = threading.Event(), threading.Event(), []

        async def slow():
            while not go.is_set():
                await Job("x").enqueue()
                done.append(1)
                begun.set()
                await asyncio.sleep(0.001)

        thread = threading.Thread(target=repid.run, args=[slow], kwargs={"timeout": None})
        thread.start()
        begun.wait()
        expected = [True, True] if SQLITE else []
        print([fork(*expected) for _ in range(3)])
        seen = len(done)
        repid.enqueue(Job("x"))  # beside the other call, on the same connection
        go.set()
        thread.join()
        print(repid.run(Queue().stats).ready - len(done) - (0 if SQLITE else 6))
"""
GONE = """
        async def leave_it_open():
            await app.magic_connect()
            await Job("x").enqueue()

        asyncio.run(leave_it_open())
        repid.enqueue(Job("x"))
        print(repid.run(Queue().stats).ready)
"""


def run(backend: str, code: str, folder: Path, *warnings: str) -> str:
    package = f"repid_{backend}"
    pytest.importorskip(package)
    broker = BACKENDS[backend].format(file=str(folder / "jobs.db"))
    code = dedent(code).strip().replace("\n", "\n    ").replace("SQLITE", repr(backend == "sqlite"))
    program = dedent(PROGRAM).format(package=package, broker=broker, code=code)
    done = subprocess.run(
        [sys.executable, *warnings, "-c", program], cwd=folder, capture_output=True, text=True, timeout=55, check=False
    )
    if done.stdout.startswith("away"):
        pytest.skip(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("backend", BACKENDS)
def test_forks_of_a_process_that_has_used_it(backend: str, tmp_path: Path) -> None:
    assert run(backend, IDLE, tmp_path, "-W", "error") == "[0, 0, 0]\n8\n"


@pytest.mark.parametrize("backend", BACKENDS)
def test_forks_while_a_call_is_under_way(backend: str, tmp_path: Path) -> None:
    """SQLite's files may not be used by parent and child: it says so."""
    assert run(backend, UNDER_WAY, tmp_path, "-W", "error") == "[0, 0, 0]\n1\n"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loop_that_has_ended_without_disconnecting(backend: str, tmp_path: Path) -> None:
    assert run(backend, GONE, tmp_path) == "2\n"
