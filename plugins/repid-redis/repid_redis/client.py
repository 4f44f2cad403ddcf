"""What brokers talk to Redis with: the right node for a key, one shared connection to each, and calls that outlive it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from attrs import frozen
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from repid_redis.link import Link, LinkLostError, Reply
from repid_redis.scripts import Script, Source
from repid_redis.settings import RedisSettings
from repid_redis.topology import Topology

_LOOK_AROUND: Final = 0.5  # seconds to wait for a node of a cluster, before another is looked for
_PAUSE: Final = 0.05  # seconds before a call is tried again that the server has put off
_FULL: Final = 7  # the version of Redis from which on scripts may go on when the memory is full
_PUT_OFF: Final = (AskError, ClusterDownError, MovedError, ReadOnlyError, TryAgainError)


def moment(reply: Any) -> datetime:
    """What the server's clock says, as `TIME` tells it."""
    seconds, microseconds = map(int, reply)
    return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds)


class UnreachableError(RedisConnectionError):
    """The server could not be reached in time.

    Attributes:
        sent: Whether it may have got the call.
    """

    def __init__(self, cause: Exception, *, sent: bool) -> None:
        super().__init__(str(cause))
        self.__cause__ = cause
        self.sent = sent


@frozen
class Answer:
    """A reply.

    Attributes:
        value: What the server said.
        again: Whether the call had been sent before, so that it may have been carried out twice.
    """

    value: Any
    again: bool


class Client:
    """Calls to Redis. They are sent again when the connection was lost on the way, so they must bear being carried out twice.

    Args:
        topology: Where the servers are.
        settings: `connect_timeout` is how long a call waits for a connection.

    Attributes:
        info: What the server says of itself, by the names of `INFO`.
    """

    def __init__(self, topology: Topology, settings: RedisSettings) -> None:
        self.topology, self.settings = topology, settings
        self.info: dict[str, str] = {}
        self._links: dict[str | None, Link] = {}
        self._when_full = self._closed = True

    async def open(self) -> None:
        """Connect.

        Raises:
            RedisError: The server does not answer, or refuses; what came first.
            OSError: It cannot be reached.
        """
        try:
            async with asyncio.timeout(self.settings.connect_timeout.total_seconds()):
                connection = await self.connect("")
                try:
                    for section in ("server", "memory"):
                        await connection.send_command("INFO", section, check_health=False)
                        text = await connection.read_response()
                        if isinstance(text, bytes | str):
                            lines = (text.decode() if isinstance(text, bytes) else text).splitlines()
                            self.info.update((name, value) for name, _, value in (line.partition(":") for line in lines))
                finally:
                    await connection.disconnect(nowait=True)
                version = self.info.get("redis_version", "")
                self._when_full = not version or int(version.split(".", 1)[0]) >= _FULL
                self._closed = False
                await self._live("", self._deadline(None), sent=False)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        self._closed = True
        links, self._links = list(self._links.values()), {}
        for link in links:
            await link.close()

    def abandon(self) -> None:
        """End as if the process had died."""
        for link in self._links.values():
            link.abandon()
        self._links, self._closed = {}, True

    @property
    def is_up(self) -> bool:
        """Whether there are connections to all servers that are known."""
        return all(link.is_up for link in self._links.values())

    async def refresh(self) -> None:
        """Look anew where the servers are."""
        with suppress(RedisError, OSError):  # they are in trouble; whoever wants something of them tries again
            await self.topology.refresh()

    async def connect(self, key: str) -> AbstractConnection:
        """A connection of one's own to the node that serves a key."""
        return await self.topology.connect(await self._node(key))

    def dedicated(self, key: str, patience: timedelta) -> Link:
        """A link of one's own to the node that serves a key, for calls that block the connection."""
        return Link(partial(self.connect, key), patience=patience, backoff=self.settings.reconnect_backoff)

    def source(self, script: Script) -> Source:
        """The text of a script for this server."""
        return script.when_full if self._when_full else script.plain

    async def call(self, key: str, *command: Any) -> Any:
        """Send a command to the node that serves `key`; what `ask` gives, without the `Answer`."""
        return (await self._ask(key, command, self._deadline(None), follow=True)).value

    async def run(self, script: Script, base: str, *args: Any, timeout: timedelta | None = None, again: bool = False) -> Answer:
        """Run a script on the keys that begin with `base`.

        Args:
            script: The step.
            base: Its `KEYS[1]`.
            args: Its arguments.
            timeout: How long it waits for a connection, and is sent again; `connect_timeout` if None.
            again: Whether it may have been carried out before.

        Raises:
            UnreachableError: There was no connection, or none that lived to the reply.
            ResponseError: The server refuses.
        """
        source, deadline = self.source(script), self._deadline(timeout)
        command = ("EVALSHA", source.sha, 1, base, *args)
        return await self._ask(base, command, deadline, follow=False, sent=again, text=source.text)

    def post(self, script: Script, base: str, *args: Any) -> Reply | None:
        """Run a script, if that can be done this instant; the future of its reply, and None if it cannot.

        Whoever gets no reply, or an error, has to `run` it, knowing that it may have been carried out.
        """
        link = self._links.get(None)
        if link is None or not link.is_up:
            return None
        return link.call("EVALSHA", self.source(script).sha, 1, base, *args)

    async def run_once(self, script: Script, base: str, *args: Any) -> Any:
        """Run a script, but never send it again once it may have been carried out.

        Raises:
            LinkLostError: The reply was lost.
            UnreachableError: There was no connection.
            ResponseError: The server refuses.
        """
        source = self.source(script)
        link = await self._live(base, self._deadline(None), sent=False)
        try:
            try:
                return await link.call("EVALSHA", source.sha, 1, base, *args)
            except NoScriptError:
                return await link.call("EVAL", source.text, 1, base, *args)
        except _PUT_OFF as error:
            await self._turn_away(link, error)
            raise LinkLostError(str(error), sent=False) from error

    def _deadline(self, timeout: timedelta | None) -> float:
        span = self.settings.connect_timeout if timeout is None else timeout
        return asyncio.get_running_loop().time() + span.total_seconds()

    async def _ask(
        self, key: str, command: tuple[Any, ...], deadline: float, *, follow: bool, sent: bool = False, text: str = ""
    ) -> Answer:
        """Send until there is a reply.

        A key that is on its way to another node of a cluster is asked for there if `follow` says so. Scripts wait until all
        keys of the queue have moved: only the first of them is known to the server. `text` is that of the script.
        """
        loop = asyncio.get_running_loop()
        error: Exception | None = None
        while True:
            try:
                link = await self._live(key, deadline, sent=sent)
            except UnreachableError as away:
                if error is not None and isinstance(away.__cause__, TimeoutError):  # what went wrong before tells more
                    raise UnreachableError(error, sent=sent) from error
                raise
            try:
                return Answer(await link.call(*command), sent)
            except LinkLostError as lost:
                error, sent = lost, sent or lost.sent
            except NoScriptError as forgotten:  # the server was restarted, or somebody flushed its scripts
                error, command = forgotten, ("EVAL", text, *command[2:])
            except _PUT_OFF as put_off:
                if isinstance(put_off, AskError) and follow:
                    return Answer(await self._follow(put_off, command), sent)
                error = put_off
                await self._turn_away(link, put_off)
                await asyncio.sleep(min(_PAUSE, max(0.0, deadline - loop.time())))
            if loop.time() >= deadline:
                raise UnreachableError(error, sent=sent) from error

    async def _follow(self, error: AskError, command: tuple[Any, ...]) -> Any:
        link = self._to(f"{error.host}:{error.port}")
        await link.up(self._deadline(None))
        asking, reply = link.call("ASKING"), link.call(*command)
        await asking
        return await reply

    async def _turn_away(self, link: Link, error: ResponseError) -> None:
        """The server said that it is not, or not now, the one to ask."""
        if isinstance(error, ReadOnlyError):
            link.drop()
        await self.refresh()

    async def _node(self, key: str) -> str | None:
        return await self.topology.node_of(key) if self.settings.mode == "cluster" else None

    async def _live(self, key: str, deadline: float, *, sent: bool) -> Link:
        """The link to the node that serves a key, once it is up. A cluster may give the key to another node meanwhile."""
        if (only := self._links.get(None)) is not None and only.is_up:
            return only
        loop, in_cluster = asyncio.get_running_loop(), self.settings.mode == "cluster"
        link: Link | None = None
        while True:
            try:
                link = self._to(await self._node(key))
                if not link.is_up:
                    await link.up(min(deadline, loop.time() + _LOOK_AROUND) if in_cluster else deadline)
            except Exception as error:
                if self._closed or not in_cluster or loop.time() >= deadline:
                    raise UnreachableError(error, sent=sent) from error
            else:
                return link
            await self.refresh()
            await self._forget(link)

    async def _forget(self, link: Link | None) -> None:
        """Close the link to a node that is down, and that nobody may need any more."""
        for node, known in list(self._links.items()):
            if known is link and not link.is_up:
                del self._links[node]
                await link.close()

    def _to(self, node: str | None) -> Link:
        link = self._links.get(node)
        if link is None:
            if self._closed:
                raise LinkLostError("the client is closed", sent=False)
            settings = self.settings
            connect: partial[Coroutine[Any, Any, AbstractConnection]] = partial(self.topology.connect, node)
            link = Link(connect, patience=settings.reply_deadline, backoff=settings.reconnect_backoff)
            self._links[node] = link
        return link
