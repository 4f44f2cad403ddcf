"""One channel's time with a consumer: what it holds, and how that is acknowledged."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from repid_rabbitmq import frames
from repid_rabbitmq.link import Channel

if TYPE_CHECKING:
    from repid_rabbitmq.delivery import RabbitDelivery


_AT_ONCE: Final = 32  # acknowledgements that do not wait for the end of the turn of the loop


class Session:
    """What a consumer holds on one channel. Once the channel is closed, the server gives it out again.

    Args:
        channel: The channel.

    Attributes:
        held: The deliveries by their tags, in order.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.held: dict[int, RabbitDelivery] = {}
        self._acked: set[int] = set()

    @property
    def is_open(self) -> bool:
        """Whether what is held can be settled."""
        return self.channel.is_open

    def ack(self, tag: int) -> None:
        """Acknowledge with all others of this turn of the loop; at once, if there are many, or no others to wait for."""
        self._acked.add(tag)
        if len(self._acked) >= min(_AT_ONCE, len(self.held)):
            self.send()  # so that the server sends others while the loop goes on
        elif len(self._acked) == 1:
            asyncio.get_running_loop().call_soon(self.flush)

    def send(self) -> None:
        """Send what was acknowledged now, without waiting for the end of this turn of the loop."""
        self.flush()
        self.channel.link.flush()

    def give_back(self, tag: int) -> None:
        """Have the server put it back."""
        if self.held.pop(tag, None) is not None and self.is_open:
            self.channel.link.send(frames.given_back(self.channel.number, tag))

    def flush(self) -> None:
        """Send what was acknowledged: what nothing unacknowledged is before as one, the rest one by one."""
        acked, self._acked = self._acked, set()
        if not acked or not self.is_open:
            return
        first, held, number = [], self.held, self.channel.number
        for tag in held:
            if tag not in acked:
                break
            first.append(tag)
        out = []
        if first:
            out.append(frames.acked(number, first[-1], multiple=len(first) > 1))
            acked.difference_update(first)
        out += [frames.acked(number, tag, multiple=False) for tag in acked]
        for tag in (*first, *acked):
            held.pop(tag, None)
        self.channel.link.send(b"".join(out))
