"""How many messages queues hold: asked for by a worker now and then, so that a scrape never waits for a broker."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Collection
from contextlib import suppress
from datetime import timedelta
from typing import Final

from repid_core import Connection
from repid_prometheus.metrics import Metrics, is_shared

logger = logging.getLogger(__name__)

_STATES: Final = ("ready", "in_progress", "delayed", "dead")


class Depths:
    """The depths of queues as gauges.

    Args:
        connection: Whose broker is asked.
        metrics: Where they go.
        timeout: How long one round may take.
    """

    def __init__(self, connection: Connection, metrics: Metrics, timeout: timedelta) -> None:
        self._broker, self._metrics, self._timeout = connection.message_broker, metrics, timeout.total_seconds()
        self._known: set[tuple[str, str]] = set()  # gauges that have a value
        self._silent: set[str] = set()  # queues of which no answer came the last time

    async def refresh(self, queues: Collection[str]) -> None:
        """Ask for each queue. Those that the broker does not answer, or cannot tell, are NaN."""
        left = dict.fromkeys(sorted(queues), "it took too long")
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                for queue in list(left):
                    try:
                        stats = await self._broker.queue_stats(queue)
                    except Exception as error:  # noqa: BLE001 — whatever a broker raises, it did not answer
                        left[queue] = str(error) or type(error).__name__
                    else:
                        del left[queue]
                        self._set(queue, {state: getattr(stats, state) for state in _STATES})
        for queue, why in left.items():
            self._set(queue, dict.fromkeys(_STATES))
            if queue not in self._silent:
                logger.warning("the depth of %s is not known: %s", queue, why, extra={"queue": queue})
        self._silent = set(left)

    def forget(self) -> None:
        """Nobody asks any more. With several processes, others do."""
        if not is_shared():
            for queue, state in self._known:
                self._metrics.depth(queue, state).set(math.nan)
        self._known.clear()

    def _set(self, queue: str, counts: dict[str, int | None]) -> None:
        for state, count in counts.items():
            if count is not None:
                self._known.add((queue, state))
                self._metrics.depth(queue, state).set(count)
            elif (queue, state) in self._known:
                self._metrics.depth(queue, state).set(math.nan)
