"""Acknowledgements: many leave as one, and what nobody waits for leaves at once."""

from __future__ import annotations

import asyncio
from typing import cast

from repid_rabbitmq import frames
from repid_rabbitmq.delivery import RabbitDelivery
from repid_rabbitmq.link import Channel
from repid_rabbitmq.session import Session


class Wire:
    """A channel and its link, and what was written to it."""

    def __init__(self) -> None:
        self.number, self.is_open, self.link = 1, True, self
        self.written: list[bytes] = []
        self._out: list[bytes] = []

    def send(self, data: bytes) -> None:
        self._out.append(data)
        asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        if self._out:
            self.written.append(b"".join(self._out))
            self._out.clear()


def held(most: int) -> tuple[Session, list[bytes]]:
    """A session that holds the deliveries 1 to so many, and what it writes."""
    wire = Wire()
    session = Session(cast(Channel, wire))
    session.held.update({tag: cast(RabbitDelivery, tag) for tag in range(1, most + 1)})
    return session, wire.written


async def turns() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_the_last_one_held_is_acknowledged_without_delay() -> None:
    session, written = held(1)
    session.ack(1)
    assert written == [frames.acked(1, 1, multiple=False)]
    await turns()
    assert len(written) == 1


async def test_those_of_one_turn_leave_together() -> None:
    session, written = held(4)
    for tag in (2, 1, 4):
        session.ack(tag)
    assert not written
    await turns()
    assert written == [frames.acked(1, 2, multiple=True) + frames.acked(1, 4, multiple=False)]
    assert list(session.held) == [3]
    session.ack(3)
    assert written[1:] == [frames.acked(1, 3, multiple=False)]


async def test_many_do_not_wait_for_the_end_of_the_turn() -> None:
    session, written = held(100)
    for tag in range(1, 33):
        session.ack(tag)
    assert written == [frames.acked(1, 32, multiple=True)]
    session.ack(33)
    await turns()
    assert written[1:] == [frames.acked(1, 33, multiple=False)]
