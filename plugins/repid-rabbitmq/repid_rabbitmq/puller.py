"""Messages of several queues, one by one, in the order of their priorities.

A server that pushes from several queues takes them in turn. Who has room for a single message, and wants the most urgent, asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from pamqp import commands

from repid_rabbitmq import frames
from repid_rabbitmq.line import FAULTS
from repid_rabbitmq.session import Session

Take = Callable[[Session, int, int, bool, bytes, bytes], None]
"""Takes what came: on which channel, the number of its queue, its tag, whether it was given out before, header frame and body."""


class Puller:
    """Fetches a message when one is wanted, and waits for one where there is none.

    Args:
        name: Of what it fetches, for the names of tasks.
        sources: The queues, the most urgent first.
        is_wanted: Whether a message is, while nothing is held.
        take: What takes it.
    """

    def __init__(self, name: str, sources: Sequence[str], is_wanted: Callable[[], bool], take: Take) -> None:
        self._name, self._sources, self._is_wanted, self._take = name, sources, is_wanted, take
        self._changed = asyncio.Event()
        self._round = 0
        self._task: asyncio.Task[None] | None = None

    def start(self, session: Session) -> None:
        """Fetch on a channel until that ends, or `stop` is called."""
        self._task = asyncio.get_running_loop().create_task(self._run(session), name=f"repid rabbitmq fetch {self._name}")

    def stop(self) -> asyncio.Task[None] | None:
        """Fetch no more; what is to be waited for."""
        if self._task is not None:
            self._task.cancel()
        return self._task

    def look_again(self) -> None:
        """See whether a message is wanted: it may be now."""
        self._changed.set()

    async def _run(self, session: Session) -> None:
        with suppress(*FAULTS):
            while session.is_open:
                self._changed.clear()
                if session.held or not self._is_wanted():
                    await self._changed.wait()
                elif not await self._fetch(session):
                    await self._wait(session)

    async def _fetch(self, session: Session) -> bool:
        for lane, queue in enumerate(self._sources):
            got = await session.channel.call(commands.Basic.Get(queue=queue))
            if isinstance(got, tuple):
                frame, header, body = got
                self._take(session, lane, frame.delivery_tag, frame.redelivered, header, body)
                return True
        return False

    async def _wait(self, session: Session) -> None:
        """Wait for the first message of any priority; what comes with it goes back."""
        channel, came = session.channel, asyncio.get_running_loop().create_future()
        found: list[tuple[int, int, bool, bytes, bytes]] = []

        def take(lane: int, *delivered: Any) -> None:
            found.append((lane, *delivered))
            if not came.done():
                came.set_result(None)

        self._round += 1
        tags = [f"{self._round}.{lane}" for lane in range(len(self._sources))]
        for lane, tag in enumerate(tags):
            channel.consumers[tag.encode()] = partial(take, lane)
        await channel.call(commands.Basic.Qos(prefetch_count=1))
        for tag, queue in zip(tags, self._sources, strict=True):
            await channel.call(commands.Basic.Consume(queue=queue, consumer_tag=tag))
        try:
            await asyncio.wait([came])
        finally:
            for tag in tags:
                if channel.is_open:
                    await channel.call(commands.Basic.Cancel(consumer_tag=tag))
            found.sort()
            for delivered in found[1:]:
                if channel.is_open:
                    channel.link.send(frames.given_back(channel.number, delivered[1]))
            if found and channel.is_open:
                self._take(session, *found[0])
