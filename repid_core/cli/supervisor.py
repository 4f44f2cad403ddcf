"""Several worker processes under one: started again when they crash, stopped in order, and made anew when the code changes."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final

from repid_core.cli.group import DONE, PROBLEM, USAGE, Failure
from repid_core.health import HealthCheckServer, HealthCheckServerSettings

logger = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 0.5  # seconds before a crashed worker is started again; doubled with each crash
_LONGEST_PAUSE: Final = 30.0
_PROVEN: Final = 30.0  # seconds that a worker has to be up for the pause to begin anew
_GRACE: Final = 25.0  # seconds that a worker wants for its jobs, as long as it has not said so itself
_MARGIN: Final = 15.0  # seconds that it may take beyond, to give back what is left and to disconnect
_RELOAD: Final = 3.0  # seconds that jobs get when the code has changed
_HURRY: Final = 5.0  # seconds from a second signal to the end, before the process is killed
_QUIET: Final = 10.0  # seconds that a worker that reports each second may say nothing, and be ready
_SILENT: Final = 60.0  # seconds, and be live
_AGAIN: Final = signal.SIGINT  # not SIGTERM, of which two may arrive as one
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGTERM))


class Child:
    """One worker process.

    Attributes:
        number: Its place, from 1.
        process: The process.
        up_at: When it was up, by the monotonic clock; None before.
        grace: The seconds that it gives its jobs.
        heard_at: When it spoke last, by the monotonic clock.
    """

    def __init__(self, number: int, process: Process) -> None:
        self.number, self.process = number, process
        self.up_at: float | None = None
        self.grace = _GRACE
        self.heard_at = 0.0
        self._problems: dict[str, str | None] = {}

    def __str__(self) -> str:
        return f"worker {self.number} (process {self.process.pid})"

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)

    async def listen(self, line: socket.socket, is_up: Callable[[], None]) -> None:
        """Hear what it says, until it has ended; call `is_up` when it is."""
        reader, writer = await asyncio.open_connection(sock=line)
        try:
            while text := await reader.readline():
                said, self.heard_at = json.loads(text), time.monotonic()
                if "grace" not in said:
                    self._problems = said
                    continue
                self.grace, self.up_at = float(said["grace"]), self.heard_at
                logger.info("%s is up", self)
                is_up()
        except ConnectionError:
            pass
        finally:
            writer.close()

    def end(self) -> str:
        """How it ended, in words."""
        status = self.process.returncode
        if status is not None and status < 0:
            with suppress(ValueError):
                return f"was ended by {signal.Signals(-status).name}"
        return f"ended with status {status}"

    def why_not_live(self) -> str | None:
        """What it said of itself, or that it says nothing; while it starts, the supervisor sees to it."""
        return None if self.up_at is None else self._quiet(_SILENT) or self._problems.get("live")

    def why_not_ready(self) -> str | None:
        """The same, of being at work."""
        return "it is starting" if self.up_at is None else self._quiet(_QUIET) or self._problems.get("ready")

    def _quiet(self, limit: float) -> str | None:
        silence = time.monotonic() - self.heard_at
        return f"it has said nothing for {silence:.0f} s" if silence > limit else None

    def proven(self) -> bool:
        """Whether it was up for so long that its end has nothing to do with its beginning."""
        return self.up_at is not None and time.monotonic() - self.up_at >= _PROVEN


class Supervisor:
    """Keeps worker processes running.

    They are in sessions of their own, so that Ctrl-C reaches the supervisor alone, which passes it on; and each has a line
    to the supervisor, by whose end it sees that the supervisor has died, and stops.

    Args:
        command: What a worker is started with; `--child N/M` is added.
        count: How many.
        watched: Folders; when a Python file in them changes, all workers are made anew.
        health: Where to answer health checks, for all workers; they have to report.
    """

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        watched: Sequence[Path] = (),
        health: HealthCheckServerSettings | None = None,
    ) -> None:
        self._command, self._count, self._watched = list(command), count, tuple(watched)
        self._health = health
        self._children: set[Child] = set()
        self._over = asyncio.Event()  # the workers that there are shall end
        self._changed = asyncio.Event()  # the code has
        self._stopping = self._ever_up = False
        self._killing = asyncio.Event()
        self._signals = 0
        self._status = DONE

    async def run(self) -> int:
        """Start the workers, and keep them, until a signal, or until all have ended by themselves; the exit status."""
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            if self._health is not None:
                server = HealthCheckServer(self._health, self._why_not_live, self._why_not_ready)
                stack.push_async_callback(server.stop)
                await server.start()
            if self._watched:
                changes = _changes(self._watched)
                watching = asyncio.create_task(self._watch(changes), name="repid reload")
                stack.callback(watching.cancel)
            for number in _SIGNALS:
                loop.add_signal_handler(number, self._signal, number)
                stack.callback(loop.remove_signal_handler, number)
            await self._round()
            while self._watched and not self._stopping:
                if not self._changed.is_set():
                    logger.info("no worker runs: waiting for a change of the code")
                    await self._over.wait()
                if not self._stopping:
                    self._changed.clear()
                    self._over.clear()
                    await self._round()
        logger.info("all workers have ended")
        return self._status

    async def _round(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(1, self._count + 1):
                group.create_task(self._keep(number), name=f"repid worker {number}")

    def _signal(self, number: signal.Signals) -> None:
        self._signals += 1
        name = signal.Signals(number).name
        if self._signals == 1:
            logger.info("%s: stopping %d workers; a second one gives back at once what they run", name, len(self._children))
            self._stop()
        elif self._signals == 2:
            logger.warning("%s again: what workers run is given back at once", name)
            self._send_all(_AGAIN)
        else:
            logger.error("%s once more: workers are killed", name)
            self._killing.set()

    def _stop(self) -> None:
        self._stopping = True
        self._over.set()

    def _send_all(self, number: signal.Signals) -> None:
        for child in self._children:
            child.send(number)

    async def _keep(self, number: int) -> None:
        """Have one worker running, until it is to end, or has ended by itself in an orderly way."""
        pause = _FIRST_PAUSE
        while not self._over.is_set():
            child = await self._live(number)
            status = child.process.returncode
            if self._over.is_set() or status == DONE:
                return
            if self._watched:
                logger.error("%s %s", child, child.end())
                return
            if status == USAGE and not self._ever_up:  # it said why, and would say it again
                self._status = USAGE
                self._stop()
                return
            pause = _FIRST_PAUSE if child.proven() else pause
            logger.error("%s %s; it is started again in %g s", child, child.end(), pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _live(self, number: int) -> Child:
        """The life of a worker, from its start to its end."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            process = await asyncio.create_subprocess_exec(
                *self._command, "--child", f"{number}/{self._count}", stdin=theirs.fileno(), start_new_session=True
            )
            theirs.close()
            child = Child(number, process)
            self._children.add(child)
            listening = asyncio.create_task(child.listen(ours, self._is_up))
            ended, over = asyncio.create_task(process.wait()), asyncio.create_task(self._over.wait())
            try:
                await asyncio.wait((ended, over), return_when=asyncio.FIRST_COMPLETED)
                if not ended.done():
                    await self._end(child, ended)
            finally:
                self._children.discard(child)
                for task in (listening, over):
                    task.cancel()
                await asyncio.gather(listening, ended, over, return_exceptions=True)
        return child

    def _is_up(self) -> None:
        self._ever_up = True
        if self._count > 1 and sum(child.up_at is not None for child in self._children) == self._count:
            logger.info("all %d workers are up", self._count)

    def _why_not_live(self) -> str | None:
        return next((f"{child}: {why}" for child in self._children if (why := child.why_not_live())), None)

    def _why_not_ready(self) -> str | None:
        if self._stopping:
            return "the workers are stopping"
        if missing := self._count - len(self._children):
            return f"{missing} of {self._count} workers do not run"
        return next((f"{child}: {why}" for child in self._children if (why := child.why_not_ready())), None)

    async def _end(self, child: Child, ended: asyncio.Task[int]) -> None:
        """Let a worker end in order; kill it if it does not."""
        child.send(signal.SIGTERM)
        if self._changed.is_set() and not self._stopping:
            if await self._within(_RELOAD, ended):
                return
            child.send(_AGAIN)
            patience = _HURRY
        else:
            patience = child.grace + _MARGIN
        if await self._within(patience, ended):
            if ended.result() not in {DONE, -signal.SIGTERM}:
                logger.error("%s %s", child, child.end())
                self._status = self._status or PROBLEM
            return
        logger.error("%s does not end, and is killed: what it ran is given to others when its lease is over", child)
        self._status = PROBLEM
        child.send(signal.SIGKILL)
        await asyncio.shield(ended)

    async def _within(self, seconds: float, ended: asyncio.Task[int]) -> bool:
        """Whether it ends in this time, and before it is to be killed."""
        killing = asyncio.create_task(self._killing.wait())
        try:
            await asyncio.wait((ended, killing), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            killing.cancel()
        return ended.done()

    async def _watch(self, changes: AsyncIterator[Collection[tuple[Any, str]]]) -> None:
        async for changed in changes:
            names = sorted({Path(path).name for _, path in changed})
            logger.info("%s changed: starting anew", ", ".join(names[:3]) + (", …" if len(names) > 3 else ""))
            self._changed.set()
            self._over.set()


def _changes(folders: Sequence[Path]) -> AsyncIterator[Collection[tuple[Any, str]]]:
    try:
        from watchfiles import PythonFilter, awatch  # noqa: PLC0415 — optional
    except ImportError:
        raise Failure("--reload needs watchfiles: pip install watchfiles", USAGE) from None
    changes: AsyncIterator[Collection[tuple[Any, str]]] = awatch(*folders, watch_filter=PythonFilter())
    return changes
