"""What a test may leave behind."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

from attrs import frozen

from repid_core.abc import MessageBroker
from repid_core.memory import InMemoryMessageBroker
from repid_core.testing.runner import JobRun, place

Task = asyncio.Task[Any]


@frozen
class Leaks:
    """Looks for it, and says a line for each.

    Args:
        opener: The task that opened the harness.
        before: The tasks that ran then.
    """

    opener: Task | None
    before: Collection[Task]

    def jobs(self, running: Iterable[JobRun]) -> list[str]:
        """Jobs that still run."""
        return [f"job {run.envelope.key.topic!r}, which still runs: {place(run.task)}" for run in running]

    def deliveries(self, broker: MessageBroker, running: Iterable[JobRun]) -> list[str]:
        """Messages in somebody's hand."""
        if not isinstance(broker, InMemoryMessageBroker):
            return []
        ours = {run.envelope.key for run in running}
        return [
            f"a message for {entry.envelope.key.topic!r} from queue {name!r}, which was received and not settled"
            for name, queue in broker._queues.items()
            for lease in queue.leases
            for entry in lease.held
            if entry.envelope.key not in ours
        ]

    def tasks(self, now: Collection[Task], running: Collection[Task]) -> list[str]:
        """Tasks that were started meanwhile."""
        mine = {asyncio.current_task(), self.opener, *self.before, *running}
        return [
            f"task {task.get_name()!r}, which still runs: {place(task)}"
            for task in now
            if task not in mine and not _is_of_anyios_plugin(task)
        ]

    def results(self, unread: Iterable[str]) -> list[str]:
        """Results that nobody has read, by actor."""
        return [
            f"{count} result{'s' * (count > 1)} of {name!r}, which nobody has read" for name, count in Counter(unread).items()
        ]


def _is_of_anyios_plugin(task: Task) -> bool:
    """Whether it is the one that waits for the task in which anyio runs tests and fixtures."""
    return str(getattr(task.get_coro(), "__qualname__", "")).startswith("TestRunner.")
