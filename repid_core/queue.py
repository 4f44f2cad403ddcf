"""A queue, as producers and operators see it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection

from repid_core.app import current_connection
from repid_core.connection import Connection
from repid_core.data import Capability, MessageCategory, QueueStats, check_name
from repid_core.errors import InvalidJobError, UnsupportedFeatureError
from repid_core.message import Message, envelope_of


class Queue:
    """A queue by name. Making one opens and declares nothing.

    Args:
        name: Up to 128 of ASCII letters, digits, '_', '-' and '.', a letter or '_' first.
        connection: By default the one in reach at first use.

    Raises:
        InvalidJobError: The name is not valid.
    """

    def __init__(self, name: str = "default", *, connection: Connection | None = None) -> None:
        try:
            self.name = check_name(name, "queue name")
        except ValueError as error:
            raise InvalidJobError(str(error)) from error
        if connection is not None and not isinstance(connection, Connection):
            raise InvalidJobError(f"connection={connection!r}: give a Connection")
        self._connection = connection

    def __repr__(self) -> str:
        return f"Queue({self.name!r})"

    @property
    def connection(self) -> Connection:
        """The connection it uses, open and usable here."""
        connection = self._connection or current_connection()
        connection.check()
        return connection

    async def declare(self, topics: Collection[str] = ()) -> None:
        """Make the queue; `enqueue` does it by itself. Idempotent."""
        connection = self.connection
        facts = {"queue": self.name}
        await connection.middleware.watch("queue_declare", facts, connection.message_broker.declare_queue, self.name, topics)

    async def flush(self) -> None:
        """Remove its ready, delayed and dead messages; running ones go on."""
        connection = self.connection
        await connection.middleware.watch("queue_flush", {"queue": self.name}, connection.message_broker.flush_queue, self.name)

    async def delete(self) -> None:
        """Remove it and all that belongs to it."""
        connection = self.connection
        await connection.middleware.watch("queue_delete", {"queue": self.name}, connection.message_broker.delete_queue, self.name)

    async def stats(self) -> QueueStats:
        """Count its messages."""
        return await self.connection.message_broker.queue_stats(self.name)

    async def get_messages(
        self,
        topics: Collection[str] | None = None,
        category: MessageCategory = MessageCategory.NORMAL,
        max_unacked_messages: int = 100,
    ) -> AsyncIterator[Message]:
        """Take messages one by one, for as long as you iterate; each is yours until you settle it.

        Leaving the iteration gives back what is not settled.

        Args:
            topics: Only those of these actors.
            category: NORMAL, DELAYED or DEAD.
            max_unacked_messages: The most messages in your hands.

        Raises:
            UnsupportedFeatureError: The broker does not give out delayed messages.
            InvalidJobError: An argument is not valid.
        """
        connection = self.connection
        broker = connection.message_broker
        if category is MessageCategory.DELAYED and Capability.DELAYED_ACCESS not in broker.capabilities:
            raise UnsupportedFeatureError(Capability.DELAYED_ACCESS, broker)
        if isinstance(topics, str):
            raise InvalidJobError(f"get_messages(topics={topics!r}): give a list of actors' names")
        if type(max_unacked_messages) is not int or max_unacked_messages < 1:
            raise InvalidJobError(f"get_messages(max_unacked_messages={max_unacked_messages!r}): give a whole number, 1 or more")
        if not isinstance(category, MessageCategory):
            raise InvalidJobError(f"get_messages(category={category!r}): choose MessageCategory.NORMAL, DELAYED or DEAD")
        consumer = broker.consumer(self.name, topics, prefetch=max_unacked_messages, category=category)
        await consumer.start()
        try:
            while True:
                if (emit := connection.middleware.before_consume) is not None:
                    await emit(queue=self.name)
                for delivery in await consumer.receive(1):
                    if (emit := connection.middleware.after_consume) is not None:
                        await emit(queue=self.name, envelope=envelope_of(delivery))
                    yield Message(delivery, connection)
        finally:
            await consumer.close()
