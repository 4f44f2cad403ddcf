"""Sending messages, many at a time, and waiting for the server to confirm them."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from itertools import count

from pamqp import commands

from repid_core.errors import BrokerConnectionError, EnqueueError
from repid_rabbitmq import frames
from repid_rabbitmq.errors import explain
from repid_rabbitmq.line import Line, UnreachableError
from repid_rabbitmq.link import Channel, ChannelClosedError, LinkLostError
from repid_rabbitmq.settings import RabbitMessageBrokerSettings

AT_ONCE = 32  # messages that are sent while others of the same turn of the loop are still made
_WRITE = 1 << 16  # bytes that are written at once
_BESIDE = 500  # bytes of a message beside its body, roughly
_SWEEP = 0.25  # seconds between looks at what has waited too long
_DRAIN = 1.0  # seconds that a channel gets to confirm what is under way, before another takes its place


class UnroutableError(Exception):
    """There is no queue for the message, or no exchange; it was not taken."""


class Post:
    """One message on its way.

    Attributes:
        done: The outcome.
        since: When it was handed in, by the loop's clock.
        sent: Whether the server may have it.
        returned: Why the server gave it back.
        refused: Whether the server did not take it once; another channel may fare better.
    """

    __slots__ = ("body", "done", "exchange", "message_id", "props", "refused", "returned", "sent", "since", "way")

    def __init__(
        self, exchange: str, key: str, props: bytes, body: bytes, message_id: str, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.exchange, self.way = exchange, frames.route(exchange, key)
        self.props, self.body, self.message_id = props, body, message_id
        self.done: asyncio.Future[None] = loop.create_future()
        self.since = loop.time()
        self.sent = self.refused = False
        self.returned: str | None = None


class Publisher:
    """Publishes over one channel with confirms.

    What is handed in within one turn of the loop leaves with one write. If the connection is lost, what is not confirmed is
    sent again, so it may arrive twice. If the server closes the channel because of one message, only that one fails: those
    that may be to blame are sent again one by one.

    A channel remembers which node leads a quorum queue from the first message on, and RabbitMQ 3.10 refuses all messages of a
    channel that was opened while that node died, until it is back. So what is refused is sent once more, over another channel.

    Args:
        line: The connection.
        settings: Of the broker.
    """

    def __init__(self, line: Line, settings: RabbitMessageBrokerSettings) -> None:
        self._line, self._settings = line, settings
        self._loop = asyncio.get_running_loop()
        self._channel: Channel | None = None
        self._opening: asyncio.Task[None] | None = None
        self._pending: deque[Post] = deque()
        self._unconfirmed: dict[int, Post] = {}  # by tag, in order
        self._suspects: set[Post] = set()
        self._tag = 0
        self._scheduled = self._closed = False
        self._stale = False  # whether the channel is to be replaced
        self._timer: asyncio.TimerHandle | None = None
        self._away = self._loop.time()  # when the connection was last seen to be gone
        self._token, self._numbers = secrets.token_hex(8), count(1)

    def message_id(self) -> str:
        """Another id for a message; no two publishings have the same."""
        return f"{self._token}-{next(self._numbers):x}"

    def post(self, exchange: str, key: str, props: bytes, body: bytes, message_id: str) -> asyncio.Future[None]:
        """Send a message; what is given is done when the server has confirmed it.

        Raises:
            UnroutableError: No queue takes it.
            EnqueueError: The server refused it, or did not confirm it in time, when it may be there all the same.
            BrokerConnectionError: The server stayed away, and it was not sent.
        """
        post = Post(exchange, key, props, body, message_id, self._loop)
        self._pending.append(post)
        if len(self._pending) >= AT_ONCE and self._channel is not None:
            self._flush()  # so that the server begins with them while the others are made
        elif not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)
        if self._timer is None:
            self._timer = self._loop.call_later(_SWEEP, self._sweep)
        return post.done

    def _flush(self) -> None:
        self._scheduled = False
        channel = self._channel
        if channel is None:
            if self._opening is None and not self._closed and self._pending:
                self._opening = self._loop.create_task(self._open(), name="repid rabbitmq publish")
            return
        if self._stale:
            return
        link = channel.link
        most, size = 1 if self._suspects else self._settings.max_unconfirmed, 0
        while self._pending and len(self._unconfirmed) < most and link.is_writable:
            post = self._pending.popleft()
            if post.done.done():  # cancelled
                self._suspects.discard(post)
                continue
            self._tag += 1
            self._unconfirmed[self._tag] = post
            post.sent = True
            post.returned = None
            link.send(frames.published(channel.number, post.way, post.props, post.body, link.frame_max))
            size += len(post.body) + _BESIDE
            if size > _WRITE:
                size = 0
                link.flush()  # so that it is known whether the server keeps up
        link.flush()

    async def _open(self) -> None:
        try:
            while self._pending and not self._closed:
                try:
                    channel = await self._line.channel(1.0)
                    await channel.call(commands.Confirm.Select())
                except (UnreachableError, LinkLostError, ChannelClosedError):
                    await asyncio.sleep(0.05)
                    continue
                channel.on_confirm, channel.on_return = self._confirmed, self._returned
                channel.on_end = self._ended
                channel.link.on_writable = self._flush
                self._channel, self._tag = channel, 0
                if not channel.is_open:
                    self._ended(LinkLostError("it was closed at once"))
                return
        finally:
            self._opening = None
            self._flush()

    # -- what the channel calls ----------------------------------------------------------------------------------------

    def _confirmed(self, tag: int, multiple: bool, taken: bool) -> None:
        unconfirmed = self._unconfirmed
        if multiple:
            tags = []
            for each in unconfirmed:
                if each > tag:
                    break
                tags.append(each)
            for each in tags:
                self._conclude(unconfirmed.pop(each), taken)
        elif (post := unconfirmed.pop(tag, None)) is not None:
            self._conclude(post, taken)
        if self._stale and not unconfirmed:
            self._renew(self._channel)
        elif self._pending and not self._scheduled:  # other confirmations may be at hand
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _renew(self, channel: Channel | None) -> None:
        """Go on over another channel; what this one has not confirmed is sent again."""
        if channel is None or channel is not self._channel:
            return
        channel.on_confirm, channel.on_return, channel.on_end = lambda *_: None, lambda *_: None, lambda _: None
        self._channel, self._stale = None, False
        channel.leave()
        self._pending.extendleft(reversed([post for post in self._unconfirmed.values() if not post.done.done()]))
        self._unconfirmed.clear()
        self._flush()

    def _conclude(self, post: Post, taken: bool) -> None:
        if self._suspects:
            self._suspects.discard(post)
        if post.done.done():  # cancelled
            return
        if post.returned is not None:
            self._refuse(post, UnroutableError(post.returned))
        elif taken:
            post.done.set_result(None)
        elif not post.refused:
            post.refused = True
            self._pending.append(post)
            if not self._stale:
                self._stale = True
                self._loop.call_later(_DRAIN, self._renew, self._channel)
        else:
            text = f"RabbitMQ at {self._line.address} did not take the message: its queue is full, or cannot write now"
            self._refuse(post, EnqueueError(text))

    @staticmethod
    def _refuse(post: Post, error: Exception) -> None:
        post.done.set_exception(error)
        post.done.exception()  # nobody may ask

    def _returned(self, code: int, text: str, header: bytes) -> None:
        message_id = frames.read(header).message_id
        for post in self._unconfirmed.values():
            if post.message_id == message_id:
                post.returned = f"{code} {text}"

    def _ended(self, error: Exception) -> None:
        self._channel, self._stale, self._away = None, False, self._loop.time()
        posts = [post for post in self._unconfirmed.values() if not post.done.done()]
        self._unconfirmed.clear()
        if isinstance(error, ChannelClosedError):
            if len(posts) == 1:  # it was this one
                [guilty] = posts
                self._suspects.discard(guilty)
                posts = []
                if error.code == 404:
                    self._refuse(guilty, UnroutableError(str(error)))
                else:
                    refused = EnqueueError(explain(error, self._line.address))
                    refused.__cause__ = error
                    self._refuse(guilty, refused)
            self._suspects.update(posts)
        self._pending.extendleft(reversed(posts))
        self._flush()

    # -- time ----------------------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Give up what has waited too long."""
        self._timer = None
        now, up = self._loop.time(), self._line.is_up
        if up and self._channel is not None:
            self._away = now
        patience = self._settings.publish_timeout if up else self._settings.connect_timeout
        late = now - patience.total_seconds()
        for post in (*self._unconfirmed.values(), *self._pending):
            if max(post.since, 0 if up else self._away) <= late and not post.done.done():
                self._refuse(post, self._too_late(post))
        while self._pending and self._pending[0].done.done():
            self._suspects.discard(self._pending.popleft())
        if (self._unconfirmed or self._pending) and not self._closed:
            self._timer = self._loop.call_later(_SWEEP, self._sweep)

    def _too_late(self, post: Post) -> Exception:
        link = self._line.link
        if not self._line.is_up:
            text = explain(self._line.error, self._line.address)
        elif link is not None and link.blocked is not None:
            text = (
                f"RabbitMQ at {self._line.address} takes no messages for the time being, since it is short of "
                f"{link.blocked.removeprefix('low on ') or 'something'}: drain its queues, or give it more"
            )
        else:
            text = f"RabbitMQ at {self._line.address} did not confirm the message within {self._settings.publish_timeout}"
        if post.sent:
            error: Exception = EnqueueError(f"{text}; it may have been enqueued", maybe_enqueued=True)
        else:
            error = BrokerConnectionError(text)
        error.__cause__ = self._line.error
        return error

    async def close(self) -> None:
        """Wait until all is confirmed, or too late, and end."""
        posts = [post.done for post in (*self._unconfirmed.values(), *self._pending) if not post.done.done()]
        if posts:
            await asyncio.wait(posts, timeout=self._settings.connect_timeout.total_seconds())
        self.abandon()
        if (opening := self._opening) is not None:
            await asyncio.wait([opening])

    def abandon(self) -> None:
        """End, and fail what is under way."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._opening is not None:
            self._opening.cancel()
        for post in (*self._unconfirmed.values(), *self._pending):
            if not post.done.done():
                self._refuse(post, self._too_late(post))
        self._pending.clear()
