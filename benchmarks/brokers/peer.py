"""What is written for each library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final

IN_FLIGHT: Final = 100  # producers that enqueue at once, and results that are waited for at once


class UnsupportedError(Exception):
    """The library has no such thing, so it is left out of this measure."""


class Peer(ABC):
    """One library: its producer, or its worker.

    Args:
        url: The server.
        queue: A name for the queue, and for whatever else is to be kept apart.
        results: Whether results are stored.

    Attributes:
        concurrency: The most jobs that its worker runs at once; None is any number.
        many_producers: Whether several can enqueue at once on one loop.
    """

    concurrency: int | None = None
    many_producers = True

    def __init__(self, url: str, queue: str, *, results: bool) -> None:
        self.url, self.queue, self.results = url, queue, results

    @abstractmethod
    async def open(self) -> None:
        """Connect as a producer."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect the producer."""

    @abstractmethod
    async def enqueue(self, actor: str, i: int, data: str) -> Any:
        """Enqueue a job; what `result` is to have."""

    async def enqueue_delayed(self, actor: str, i: int, data: str) -> None:
        """Enqueue a job for some other hour."""
        raise UnsupportedError

    async def enqueue_all(self, actor: str, jobs: Sequence[tuple[int, str]]) -> None:
        """Enqueue many jobs with one call."""
        raise UnsupportedError

    async def result(self, handle: Any) -> int:
        """Wait for the result of a job."""
        raise UnsupportedError

    @abstractmethod
    async def work(self, concurrency: int) -> None:
        """Run jobs, so many at once, until the process is killed."""
