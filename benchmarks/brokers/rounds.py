"""All libraries, measure by measure, in rounds: what is compared was measured within the same minute."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

Outcome = tuple[Mapping[str, float], str]  # figures, and what went wrong

ROOT = Path(__file__).parents[2]
TIME_LIMIT = 120  # seconds for one measurement
QUEUES = {"seq": 1, "conc": 100, "bulk": 1000}  # who fills a queue, and how many jobs at once are run of it
MEASURES = ("seq", "c1", "conc", "c100", "bulk", "c1000", "many", "delayed", "latency", "roundtrip", "sleeper", "idle")


@dataclass(frozen=True)
class Candidate:
    """A library that takes part.

    Attributes:
        adapter: Its `Peer`, as `module:class`.
        python: The Python that has it.
    """

    adapter: str
    python: str = sys.executable


@dataclass(frozen=True)
class Row:
    """What was measured once.

    Attributes:
        peer: The library's name.
        number: The round, from 1 on.
        measure: One of `MEASURES`.
        figures: Numbers by name; none if the library has no such thing.
        error: What went wrong, or empty.
    """

    peer: str
    number: int
    measure: str
    figures: Mapping[str, float] = field(default_factory=dict)
    error: str = ""


class Server(Protocol):
    """What is needed of the server."""

    @property
    def url(self) -> str:
        """Where it is."""

    def clean(self) -> None:
        """Remove all that a measurement left behind."""


class Rounds:
    """Measures candidates in turns.

    Args:
        server: Where.
        candidates: Who, by name.
        jobs: The most jobs for one measurement.
        seconds: After how long one is broken off, and counts as far as it went.
        payload: Bytes of text in each job.
        latencies: Jobs whose latency is taken.
        sleepers: Jobs that sleep for a second.
        idle: For how many seconds an idle worker is watched.
        only: Which measures.
    """

    def __init__(
        self,
        server: Server,
        candidates: Mapping[str, Candidate],
        *,
        jobs: int = 20_000,
        seconds: float = 4.0,
        payload: int = 100,
        latencies: int = 300,
        sleepers: int = 2000,
        idle: float = 10.0,
        only: Collection[str] = MEASURES,
    ) -> None:
        self._server, self._candidates, self._only = server, candidates, only
        self._jobs, self._seconds, self._payload = jobs, seconds, payload
        self._latencies, self._sleepers, self._idle = latencies, sleepers, idle

    def run(self, rounds: int) -> Iterator[Row]:
        """The rows, as they come."""
        names = list(self._candidates)
        for number in range(1, rounds + 1):
            for step in self._steps():
                for name in names:
                    for measure, result in step(self._candidates[name]):
                        if measure in self._only:
                            yield Row(name, number, measure, *result)
                    self._server.clean()
            names = [*names[1:], names[0]]  # nobody is always the first

    def _steps(self) -> Iterator[Callable[[Candidate], Iterator[tuple[str, Outcome]]]]:
        for mode, concurrency in QUEUES.items():
            if {mode, f"c{concurrency}"}.intersection(self._only):
                yield partial(self._through, mode, concurrency)
        for measure, step in (
            ("many", partial(self._call, "many")),
            ("delayed", partial(self._call, "delayed")),
            ("latency", partial(self._call, "latency", jobs=self._latencies)),
            ("roundtrip", partial(self._call, "roundtrip")),
            ("sleeper", self._sleeper),
            ("idle", partial(self._call, "idle", concurrency=100, seconds=self._idle)),
        ):
            if measure in self._only:
                yield partial(_alone, measure, step)

    def _through(self, mode: str, concurrency: int, candidate: Candidate) -> Iterator[tuple[str, Outcome]]:
        """Fill a queue, and empty it."""
        queue = _name()
        filled, error = self._call(mode, candidate, queue=queue)
        yield mode, (filled, error)
        if f"c{concurrency}" not in self._only:
            return
        if not filled:
            filled, error = self._fill(candidate, queue)
        if filled:
            filled, error = self._call("consume", candidate, queue=queue, jobs=int(filled["jobs"]), concurrency=concurrency)
        yield f"c{concurrency}", (filled, error)

    def _fill(self, candidate: Candidate, queue: str, **options: Any) -> Outcome:
        filled, error = self._call("conc", candidate, queue=queue, **options)
        if not filled and not error:
            filled, error = self._call("seq", candidate, queue=queue, **options)
        return filled, error

    def _sleeper(self, candidate: Candidate) -> Outcome:
        queue = _name()
        filled, error = self._fill(candidate, queue, jobs=self._sleepers, actor="sleeper", seconds=60)
        if not filled:
            return {}, error
        return self._call("consume", candidate, queue=queue, jobs=int(filled["jobs"]), concurrency=1000, seconds=60)

    def _call(self, measure: str, candidate: Candidate, **options: Any) -> Outcome:
        """Have a process measure; its figures, and what went wrong."""
        settings = {
            "url": self._server.url,
            "queue": _name(),
            "jobs": self._jobs,
            "seconds": self._seconds,
            "payload": self._payload,
            **options,
        }
        command = [candidate.python, "-m", "benchmarks.brokers.child", candidate.adapter, measure]
        command += [f"--{name}={value}" for name, value in settings.items()]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        process = subprocess.Popen(  # noqa: S603 — as the user says
            command,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, log = process.communicate(timeout=TIME_LIMIT)
        except subprocess.TimeoutExpired:
            _end(process)
            process.communicate()
            return {}, f"no answer within {TIME_LIMIT} s"
        finally:
            _end(process)
        said = [line for line in out.splitlines() if line.startswith("{")]
        if not said:
            return {}, log.strip()[-500:] or f"it ended with {process.returncode}"
        figures = json.loads(said[-1])
        return ({}, figures["error"]) if "error" in figures else (figures, "")


def _alone(measure: str, step: Callable[[Candidate], Outcome], candidate: Candidate) -> Iterator[tuple[str, Outcome]]:
    """A step that gives one measure."""
    yield measure, step(candidate)


def _end(process: subprocess.Popen[str]) -> None:
    """End it, and the worker that it may have started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _name() -> str:
    return f"benchmark-{uuid.uuid4().hex[:12]}"


def failures(rows: Sequence[Row]) -> list[str]:
    """What went wrong, a line each."""
    return [f"{row.peer}, {row.measure}, round {row.number}: {row.error.splitlines()[-1]}" for row in rows if row.error]
