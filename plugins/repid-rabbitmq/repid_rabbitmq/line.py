"""A connection that comes back by itself."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import ssl
from contextlib import suppress
from functools import partial
from typing import Final

from repid_rabbitmq.link import Channel, ChannelClosedError, Link, LinkLostError
from repid_rabbitmq.settings import RabbitMessageBrokerSettings
from repid_rabbitmq.url import Node

logger = logging.getLogger(__name__)


class UnreachableError(Exception):
    """No server could be reached in time; the cause is why."""


FAULTS: Final = (LinkLostError, ChannelClosedError, UnreachableError, OSError)
"""What may be raised wherever something is asked of the server."""


class Line:
    """Keeps one link up, with this or that of the servers.

    Args:
        settings: Of the broker.
        purpose: What it is for, as its name on the server says.

    Attributes:
        link: The link; it may be gone.
        error: Why there is none, as far as it is known.
    """

    def __init__(self, settings: RabbitMessageBrokerSettings, purpose: str) -> None:
        self._settings = settings
        self._url = settings.target
        self._name = f"{settings.connection_name or 'repid'} {purpose} {os.getpid()}"
        self._turn = random.randrange(len(self._url.nodes))  # noqa: S311 — to share the load, not to hide anything
        self.link: Link | None = None
        self.error: Exception | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self._tls: ssl.SSLContext | None = None
        self._opening = asyncio.Lock()

    @property
    def address(self) -> str:
        """The servers, without who asks."""
        return ",".join(map(str, self._url.nodes))

    @property
    def is_up(self) -> bool:
        """Whether there is a connection."""
        return self.link is not None and self.link.is_up

    @property
    def version(self) -> tuple[int, int] | tuple[()]:
        """Major and minor of the server that it is connected to; empty if there is none, or it does not tell."""
        said = "" if self.link is None else str(self.link.server.get("version", ""))
        major, minor = (*said.split("."), "", "")[:2]
        return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else ()

    async def open(self) -> None:
        """Connect for the first time; failing or cancelled, leave nothing open. Idempotent.

        Raises:
            LinkLostError, OSError: No server could be connected to; what the last one tried said.
        """
        async with self._opening:
            if self._keeper is not None:
                return
            async with asyncio.timeout(self._settings.connect_timeout.total_seconds()) as limit:
                try:
                    await self._connect_to_any()
                except asyncio.CancelledError:
                    if limit.expired():
                        raise TimeoutError(f"nothing was heard within {self._settings.connect_timeout}") from self.error
                    raise
            self._keeper = asyncio.get_running_loop().create_task(self._keep(), name="repid rabbitmq connection")

    async def _connect_to_any(self) -> None:
        nodes = self._url.nodes
        for attempt in range(len(nodes)):
            try:
                self.link = await self._connect(nodes[(self._turn + attempt) % len(nodes)])
            except Exception as error:
                self.error = error
                if attempt + 1 == len(nodes):
                    raise
            else:
                self._turn += attempt
                self.error = None
                return

    async def _connect(self, node: Node) -> Link:
        url, settings = self._url, self._settings
        if url.tls and self._tls is None:
            self._tls = await asyncio.to_thread(context, settings)
        link = await Link.connect(
            node.host,
            node.port,
            user=settings.username or url.username or "guest",
            password=settings.password or url.password or "guest",
            vhost=url.vhost,
            tls=self._tls,
            external=settings.auth == "external",
            name=self._name,
            heartbeat=round(settings.heartbeat.total_seconds()),
            frame_max=settings.frame_max,
        )
        link.on_blocked = partial(self._blocked, link)
        return link

    def _blocked(self, link: Link) -> None:
        if link.blocked is None:
            logger.warning("%s takes messages again", self.address)
        else:
            logger.warning("%s takes no messages for the time being: %s", self.address, link.blocked)

    async def _keep(self) -> None:
        shortest, longest = (pause.total_seconds() for pause in self._settings.reconnect_backoff)
        while True:
            assert self.link is not None  # noqa: S101
            self._wake()
            await asyncio.wait([self.link.lost])
            self.error = self.link.error
            logger.warning("the connection to %s is lost: %s", self.address, self.error)
            self._turn += 1
            pause, said = shortest, str(self.error)
            while True:
                try:
                    async with asyncio.timeout(self._settings.connect_timeout.total_seconds()):
                        await self._connect_to_any()
                    break
                except Exception as error:  # noqa: BLE001 — whatever it is, the next attempt may go better
                    self.error = error
                    if str(error) != said:
                        said = str(error)
                        logger.warning("%s cannot be connected to: %s", self.address, error)
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 — jitter
                pause = min(pause * 2, longest)
            logger.info("connected to %s again", self.address)

    def _wake(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def up(self, timeout: float) -> Link:
        """The link, once there is one.

        Args:
            timeout: Seconds to wait for it.

        Raises:
            UnreachableError: There was none in time.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        while self.link is None or not self.link.is_up:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 or self._keeper is None or self._keeper.done():
                raise UnreachableError from self.error
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.add(waiter)
            try:
                await asyncio.wait([waiter], timeout=left)
            finally:
                self._waiting.discard(waiter)
        return self.link

    async def channel(self, timeout: float) -> Channel:
        """A fresh channel, once there is a connection.

        Raises:
            UnreachableError: There was none in time.
            LinkLostError: It was lost at once.
        """
        return await (await self.up(timeout)).channel()

    async def close(self) -> None:
        """Close it for good. Idempotent."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            with suppress(asyncio.CancelledError):
                await keeper
        self._wake()
        if self.link is not None:
            await self.link.close()

    def abandon(self) -> None:
        """End as if the process had died."""
        if self._keeper is not None:
            self._keeper.cancel()
        if self.link is not None:
            self.link.abort()


def context(settings: RabbitMessageBrokerSettings) -> ssl.SSLContext:
    """How to encrypt.

    Raises:
        OSError: A file cannot be read, or is not what it should be.
    """
    made = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    if settings.ssl_ca_certs:
        made.load_verify_locations(settings.ssl_ca_certs)
    if settings.ssl_certfile:
        made.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile)
    made.check_hostname = settings.ssl_check_hostname and settings.ssl_cert_reqs == "required"
    if settings.ssl_cert_reqs == "none":
        made.verify_mode = ssl.CERT_NONE
    return made
