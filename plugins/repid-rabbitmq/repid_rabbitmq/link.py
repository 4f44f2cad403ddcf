"""One AMQP connection, from its handshake to its end, and the channels on it.

Nothing here comes back by itself: a link that is lost stays so, and what waited for it raises. `line` makes new ones.

Methods that expect a reply may be sent without waiting for the replies before: the server answers in order, but for
`basic.consume` of quorum queues. What is sent in one turn of the loop leaves with one write.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

from pamqp import commands
from pamqp import frame as codec
from pamqp.base import Frame
from pamqp.heartbeat import Heartbeat

from repid_rabbitmq import frames

_PROTOCOL: Final = b"AMQP\x00\x00\x09\x01"
_CAPABILITIES: Final[dict[str, Any]] = {
    "authentication_failure_close": True,
    "basic.nack": True,
    "connection.blocked": True,
    "consumer_cancel_notify": True,
    "publisher_confirms": True,
    "exchange_exchange_bindings": True,
}
_PATIENCE: Final = 2.0  # seconds for the last words of a connection
_HEARTBEAT: Final = Heartbeat().marshal()

Deliver = Callable[[int, bool, bytes, bytes], None]
"""Takes a delivery tag, whether it was given out before, the header frame, and the body."""


class LinkLostError(Exception):
    """The connection is gone."""


class RefusedError(LinkLostError):
    """The server has closed the connection, and said why.

    Args:
        code: Of the reply.
        text: Of the reply.
    """

    def __init__(self, code: int, text: str) -> None:
        self.code, self.text = code, text
        super().__init__(f"{code} {text}")


class ForeignError(LinkLostError):
    """What answers is no AMQP 0-9-1 server."""


class ChannelClosedError(Exception):
    """The server has closed the channel, and said why.

    Args:
        code: Of the reply.
        text: Of the reply.
    """

    def __init__(self, code: int, text: str) -> None:
        self.code, self.text = code, text
        super().__init__(f"{code} {text}")


class Link(asyncio.Protocol):
    """One connection. Make it with `connect`.

    Attributes:
        lost: Done when the connection has ended.
        error: Why it has ended; None while it stands.
        blocked: Why the server takes no messages for the time being; None if it does.
        on_blocked: Called when that changes.
        is_writable: Whether the server has read most of what was sent.
        on_writable: Called when it has, after it had not.
        server: What the server says of itself.
        frame_max: The largest frame.
        heartbeat: Seconds after which a silent side is taken for dead; 0 for never.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.error: Exception | None = None
        self.blocked: str | None = None
        self.on_blocked: Callable[[], None] = lambda: None
        self.on_writable: Callable[[], None] = lambda: None
        self.server: dict[str, Any] = {}
        self.frame_max, self.heartbeat = 131_072, 0
        self._channels: dict[int, Channel] = {}
        self._zero = Channel(self, 0)
        self._most_channels = 65_535
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._out: list[bytes] = []
        self.is_writable = True
        self._heard = self._said = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    async def connect(
        cls,
        host: str,
        port: int,
        *,
        user: str,
        password: str,
        vhost: str,
        tls: ssl.SSLContext | None = None,
        external: bool = False,
        name: str = "",
        heartbeat: int = 60,
        frame_max: int = 131_072,
    ) -> Link:
        """Connect and shake hands; cancelled or failing, leave nothing open.

        Args:
            host: Of the server.
            port: Of the server.
            user: Who asks.
            password: The password.
            vhost: The virtual host.
            tls: How to encrypt; None does not.
            external: Whether the TLS certificate says who asks.
            name: How the server shows the connection.
            heartbeat: Seconds after which a silent side is taken for dead; 0 for never.
            frame_max: The largest frame to agree on.

        Raises:
            RefusedError: The server said no.
            ForeignError: It speaks something else.
            LinkLostError: It hung up.
            OSError: It cannot be reached.
        """
        loop = asyncio.get_running_loop()
        _, link = await loop.create_connection(cls, host, port, ssl=tls, server_hostname=host if tls else None)
        try:
            await link.shake_hands(user, password, vhost, external, name, heartbeat, frame_max)
        except BaseException:
            link.abort()
            raise
        return link

    async def shake_hands(
        self, user: str, password: str, vhost: str, external: bool, name: str, heartbeat: int, frame_max: int
    ) -> None:
        """Agree with the server; see `connect`."""
        start_ = self._zero.expect("Connection.Start")
        assert self._transport is not None  # noqa: S101
        self._transport.write(_PROTOCOL)
        start = cast(commands.Connection.Start, await start_)
        self.server = dict(start.server_properties or {})
        answer = commands.Connection.StartOk(
            client_properties={
                "product": "repid-rabbitmq",
                "platform": "Python",
                "capabilities": _CAPABILITIES,
                **({"connection_name": name} if name else {}),
            },
            mechanism="EXTERNAL" if external else "PLAIN",
            response="" if external else f"\0{user}\0{password}",
            locale="en_US",
        )
        tune = cast(commands.Connection.Tune, await self._zero.call(answer, "Connection.Tune"))
        self.frame_max = min(frame_max, tune.frame_max or frame_max)
        self._most_channels = tune.channel_max or 65_535
        self.heartbeat = heartbeat
        self._zero.cast(
            commands.Connection.TuneOk(channel_max=self._most_channels, frame_max=self.frame_max, heartbeat=heartbeat)
        )
        if heartbeat:
            self._timer = self._loop.call_later(heartbeat / 2, self._beat)
        await self._zero.call(commands.Connection.Open(virtual_host=vhost))

    @property
    def is_up(self) -> bool:
        """Whether it stands."""
        return self.error is None

    async def channel(self) -> Channel:
        """Open a channel.

        Raises:
            LinkLostError: The connection is gone.
        """
        self.check()
        number = next((n for n in range(1, self._most_channels + 1) if n not in self._channels), None)
        if number is None:
            raise LinkLostError(f"all {self._most_channels} channels that the server allows are in use")
        channel = self._channels[number] = Channel(self, number)
        try:
            await channel.call(commands.Channel.Open())
        except BaseException:
            channel.leave()
            raise
        return channel

    def check(self) -> None:
        """Raise `LinkLostError` if the connection is gone."""
        if self.error is not None:
            raise self._loss()

    def _loss(self) -> LinkLostError:
        assert self.error is not None  # noqa: S101
        return self.error if isinstance(self.error, LinkLostError) else LinkLostError(str(self.error))

    async def close(self) -> None:
        """Say goodbye, and close. Idempotent."""
        if self.is_up:
            bye = self._zero.call(commands.Connection.Close(200, "goodbye", 0, 0))
            await asyncio.wait([bye], timeout=_PATIENCE)
        self.abort()
        if self._transport is not None:
            await self.lost

    def abort(self) -> None:
        """Close without a word."""
        self._fail(LinkLostError("the connection was closed"))

    # -- what the transport calls --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # What is to be sent is gathered here, and then sent at once. Not 0: a TLS transport takes nothing for too much then.
        self._transport.set_write_buffer_limits(high=1)

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True
        self.on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(LinkLostError(f"the connection was lost: {exc}" if exc else "the server hung up"))
        if not self.lost.done():
            self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        if self._rest:
            data = self._rest + data
        position, end = 0, len(data)
        if not self.server and data[:1] != b"\1":
            said = "another version of AMQP" if data[:4] == b"AMQP" else f"something that begins with {data[:16]!r}"
            self._fail(ForeignError(f"it is no AMQP 0-9-1 server, but speaks {said}"))
        while end - position > 7 and self.error is None:
            kind, number, size = frames.HEAD.unpack_from(data, position)
            stop = position + 7 + size
            if stop >= end:
                break
            try:
                self._frame(kind, number, data, position, stop)
            except Exception as error:  # noqa: BLE001 — whatever is wrong with what was read, nothing after it can be
                self._fail(LinkLostError(f"the server sent what cannot be read: {error!r}"))
            position = stop + 1
        self._rest = data[position:]

    def _frame(self, kind: int, number: int, data: bytes, start: int, stop: int) -> None:
        if data[stop] != frames.END:
            raise ValueError("a frame without an end")
        channel = self._channels.get(number) if number else self._zero
        if channel is None or kind == frames.HEARTBEAT:
            return  # a channel that was left
        if kind == frames.BODY:
            channel.take_body(data[start + 7 : stop])
        elif kind == frames.HEADER:
            channel.take_header(data[start + 7 : stop])
        else:
            method = frames.IDS.unpack_from(data, start + 7)
            if method == frames.DELIVER:
                tag_end = start + 12 + data[start + 11]
                channel.take_deliver(data[start + 12 : tag_end], *frames.TAG.unpack_from(data, tag_end))
            elif method in (frames.ACK, frames.NACK):
                tag, bits = frames.TAG.unpack_from(data, start + 11)
                channel.on_confirm(tag, bool(bits & 1), method == frames.ACK)
            else:
                frame = codec.unmarshal(data[start : stop + 1])[2]
                if number:
                    channel.take(cast(Frame, frame))
                else:
                    self._take(cast(Frame, frame))

    def _take(self, frame: Frame) -> None:
        """A method that is about the connection."""
        if isinstance(frame, commands.Connection.Close):
            self.send(codec.marshal(commands.Connection.CloseOk(), 0))
            self.flush()
            self._fail(RefusedError(frame.reply_code or 0, frame.reply_text or ""))
        elif isinstance(frame, commands.Connection.Blocked | commands.Connection.Unblocked):
            self.blocked = (frame.reason or "") if isinstance(frame, commands.Connection.Blocked) else None
            self.on_blocked()
        else:
            self._zero.take(frame)

    # -- what goes out -------------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send at the end of this turn of the loop."""
        if not self._out:
            self._loop.call_soon(self.flush)
        self._out.append(data)

    def flush(self) -> None:
        """Send what is to be sent now."""
        out, self._out = self._out, []
        if out and self._transport is not None and self.error is None:
            self._said = self._loop.time()
            self._transport.write(b"".join(out))

    def _beat(self) -> None:
        """Let the server hear something, and see that it is heard of."""
        now, pause = self._loop.time(), self.heartbeat / 2
        due = self._timer.when() if self._timer is not None else now
        # If this comes late, the loop was blocked, and what the server sent meanwhile is still to be read.
        if now - self._heard > 2 * self.heartbeat and now - due < pause:
            self._fail(LinkLostError(f"the server was silent for {now - self._heard:.1f} s"))
            return
        if now - self._said > pause * 0.75:
            self.send(_HEARTBEAT)
        self._timer = self._loop.call_later(pause, self._beat)

    def _fail(self, error: Exception) -> None:
        """The end, whoever brings it about."""
        if self.error is not None:
            return
        self.error = error
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is None:
            if not self.lost.done():
                self.lost.set_result(None)
        elif isinstance(error, RefusedError):
            self._transport.close()  # what is on its way, the confirmation of the close, still leaves
            self._loop.call_later(_PATIENCE, self._transport.abort)
        else:
            self._transport.abort()
        for channel in (self._zero, *self._channels.values()):
            channel.end(self._loss())
        self._channels.clear()

    def drop(self, channel: Channel) -> None:
        """The number of a channel is free again."""
        if self._channels.get(channel.number) is channel:
            del self._channels[channel.number]


class Channel:
    """One channel of a link.

    Attributes:
        error: Why it has ended; None while it is open.
        consumers: What is called for the deliveries of each consumer tag.
        on_end: Called once when it has ended, with the reason.
        on_confirm: Called with a tag, whether all up to it are meant, and whether the messages were taken.
        on_return: Called with the code, the text and the header frame of a message that no queue takes.
        on_cancel: Called with the tag of a consumer that the server has ended.
    """

    def __init__(self, link: Link, number: int) -> None:
        self.link, self.number = link, number
        self.error: Exception | None = None
        self.consumers: dict[bytes, Deliver] = {}
        self.on_end: Callable[[Exception], None] = lambda _: None
        self.on_confirm: Callable[[int, bool, bool], None] = lambda *_: None
        self.on_return: Callable[[int, str, bytes], None] = lambda *_: None
        self.on_cancel: Callable[[bytes], None] = lambda _: None
        self._calls: deque[tuple[tuple[str, ...], asyncio.Future[Any]]] = deque()
        self._content: Callable[[bytes, bytes], None] | None = None  # takes a header frame and the body
        self._header, self._left, self._parts = b"", 0, list[bytes]()

    @property
    def is_open(self) -> bool:
        """Whether it is."""
        return self.error is None

    def call(self, frame: Frame, *replies: str) -> asyncio.Future[Any]:
        """Send a method; its reply, with the header frame and the body of what `basic.get` got.

        Args:
            frame: The method.
            replies: The names of the methods that answer it; by default those that the specification says.

        Raises:
            ChannelClosedError: The server closed the channel instead.
            LinkLostError: The connection is gone.
        """
        reply = self.expect(*(replies or frame.valid_responses))
        if self.error is None:
            self.link.send(codec.marshal(frame, self.number))
        return reply

    def expect(self, *replies: str) -> asyncio.Future[Any]:
        """What comes next, which must be one of these."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.error is not None:
            reply.set_exception(self.error)
            reply.exception()  # nobody may ask
        else:
            self._calls.append((replies, reply))
        return reply

    def cast(self, frame: Frame) -> None:
        """Send a method that has no reply."""
        if self.error is None:
            self.link.send(codec.marshal(frame, self.number))

    async def close(self) -> None:
        """Close it; what it holds goes back to its queues. Idempotent, and quiet if the connection is gone."""
        if self.error is None:
            await asyncio.wait([self.leave()], timeout=_PATIENCE)

    def leave(self) -> asyncio.Future[Any]:
        """Close it; the confirmation."""
        done = self.call(commands.Channel.Close(200, "goodbye", 0, 0))
        if self.error is None:
            self.end(LinkLostError("the channel was closed"), last=done)
        return done

    def end(self, error: Exception, last: asyncio.Future[Any] | None = None) -> None:
        """It has ended: so say all calls that wait, but the last."""
        if self.error is None:
            self.error = error
            self.consumers.clear()
            self.on_end(error)
        calls, self._calls = self._calls, deque()
        for replies, reply in calls:
            if reply is last:
                self._calls.append((replies, reply))
            elif not reply.done():
                reply.set_exception(error)
                reply.exception()  # nobody may ask

    # -- what the link calls -------------------------------------------------------------------------------------------

    def take(self, frame: Frame) -> None:
        """A method, but those of the next three."""
        if isinstance(frame, commands.Channel.Close):
            if self.number:
                self.link.send(codec.marshal(commands.Channel.CloseOk(), self.number))
                self.link.drop(self)
            reason = ChannelClosedError(frame.reply_code or 0, frame.reply_text or "")
            self.end(reason)
            self.end(reason)  # a goodbye that has crossed it is not answered
        elif isinstance(frame, commands.Channel.CloseOk):
            self.link.drop(self)
            self._answer(frame)
        elif isinstance(frame, commands.Basic.Return):
            code, text = frame.reply_code or 0, frame.reply_text or ""
            self._content = lambda header, _: self.on_return(code, text, header)
        elif isinstance(frame, commands.Basic.Cancel):
            tag = (frame.consumer_tag or "").encode()
            self.consumers.pop(tag, None)
            self.on_cancel(tag)
        elif isinstance(frame, commands.Channel.Flow):
            self.cast(commands.Channel.FlowOk(active=frame.active))
        elif isinstance(frame, commands.Basic.GetOk):
            self._content = lambda header, body: self._answer(frame, (header, body))
        elif self.error is None:
            self._answer(frame)

    def _answer(self, frame: Frame, content: tuple[bytes, bytes] | None = None) -> None:
        if not self._calls:
            raise ValueError(f"{frame.name}, which nobody asked for")
        replies, reply = self._calls.popleft()
        if frame.name not in replies:
            raise ValueError(f"{frame.name} instead of {' or '.join(replies)}")
        if not reply.done():
            reply.set_result(frame if content is None else (frame, *content))

    def take_deliver(self, consumer: bytes, tag: int, bits: int) -> None:
        """A delivery begins."""
        deliver = self.consumers.get(consumer)
        if deliver is None:
            self._content = lambda *_: None  # it goes back when the channel closes
        else:
            self._content = lambda header, body: deliver(tag, bool(bits), header, body)

    def take_header(self, header: bytes) -> None:
        """What says how long the body is."""
        self._header, self._left = header, frames.body_size(header)
        if not self._left:
            self._done(b"")

    def take_body(self, part: bytes) -> None:
        """The body, or a part of it."""
        self._left -= len(part)
        if self._parts or self._left > 0:
            self._parts.append(part)
            if self._left > 0:
                return
            part, self._parts = b"".join(self._parts), []
        self._done(part)

    def _done(self, body: bytes) -> None:
        content, self._content = self._content, None
        if content is not None:
            content(self._header, body)
