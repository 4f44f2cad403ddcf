"""How deliveries are settled: many with one call, whoever is cancelled, and again if the reply was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from repid_core.errors import DeliveryLostError, MessageBrokerError
from repid_redis.client import Answer
from repid_redis.link import LinkLostError, Reply
from repid_redis.scripts import REJECT, Script

if TYPE_CHECKING:
    from repid_redis.consumer import RedisConsumer
    from repid_redis.delivery import RedisDelivery
    from repid_redis.heartbeat import Session


class Settlements:
    """The settlements of one consumer.

    Attributes:
        pending: Those of which there is no confirmation yet.
    """

    def __init__(self, consumer: RedisConsumer) -> None:
        self._consumer = consumer
        self.pending: dict[RedisDelivery, asyncio.Future[Any]] = {}
        self._batches: dict[Script, list[RedisDelivery]] = {}  # of this turn of the loop

    async def settle_with_others(self, script: Script, *deliveries: RedisDelivery) -> None:
        """Acknowledge or reject, in one call with all others of this turn of the loop, whoever is cancelled meanwhile.

        Raises:
            DeliveryLostError: The lease was lost.
            BrokerConnectionError: The server stayed away; the messages will be given out again.
        """
        if script not in self._batches:
            self._batches[script] = []
            asyncio.get_running_loop().call_soon(self._send, script)
        for delivery in deliveries:
            self.pending[delivery] = asyncio.get_running_loop().create_future()
            self._batches[script].append(delivery)
        await self.pending[deliveries[0]]

    def _send(self, script: Script) -> None:
        batches: dict[Session, list[RedisDelivery]] = {}
        for delivery in self._batches.pop(script):
            batches.setdefault(delivery.session, []).append(delivery)
        most = self._consumer.broker.settings.merge_batch
        for session, batch in batches.items():
            if script is REJECT:
                batch.sort(key=attrgetter("number"))
            for start in range(0, len(batch), most):
                part = batch[start : start + most]
                handles = [delivery.handle for delivery in part]
                reply = self._consumer.broker.client.post(script, self._consumer.base, session.name, *handles)
                for delivery in part:
                    self._consumer.let_go(delivery)
                if reply is None:
                    self._consumer.broker.carry_out(self._send_again(script, session, part, sent=False))
                else:
                    reply.add_done_callback(partial(self._sent, script, session, part))

    def _sent(self, script: Script, session: Session, batch: Sequence[RedisDelivery], reply: Reply) -> None:
        if reply.cancelled() or (error := reply.exception()) is not None:
            self._consumer.broker.carry_out(self._send_again(script, session, batch, sent=isinstance(error, LinkLostError)))
        else:
            self._tell(batch, reply.result())

    async def _send_again(self, script: Script, session: Session, batch: Sequence[RedisDelivery], *, sent: bool) -> None:
        handles = [delivery.handle for delivery in batch]
        try:
            answer = await self._run(script, session.name, *handles, again=sent)
        except MessageBrokerError as error:
            self._tell(batch, (), error=error)
        else:
            self._tell(batch, answer.value, again=answer.again)

    def _tell(
        self, batch: Sequence[RedisDelivery], held: int | Sequence[int], *, again: bool = False, error: Exception | None = None
    ) -> None:
        for index, delivery in enumerate(batch):
            done = self.pending.pop(delivery)
            if done.done():
                continue
            if error is None and (
                again or held == 1 or (not isinstance(held, int) and held[index])
            ):  # if it was sent twice, it was done the first time
                done.set_result(None)
            else:
                done.set_exception(error or DeliveryLostError())
                done.exception()  # a cancelled actor does not ask

    async def settle(self, delivery: RedisDelivery, script: Script, *arguments: Any) -> Any:
        """Settle one delivery by its script, whoever is cancelled meanwhile; what the script returned.

        Raises:
            DeliveryLostError: Its lease was lost.
            BrokerConnectionError: The server stayed away; the message will be given out again.
        """
        task = self._consumer.broker.carry_out(self._settle(delivery, script, *arguments))
        self.pending[delivery] = task
        try:
            return await asyncio.shield(task)
        finally:
            if task.done():
                self.pending.pop(delivery, None)
            else:
                task.add_done_callback(lambda _: self.pending.pop(delivery, None))

    async def _settle(self, delivery: RedisDelivery, script: Script, *arguments: Any) -> Any:
        self._consumer.let_go(delivery)
        answer = await self._run(script, delivery.session.name, delivery.handle, *arguments)
        if answer.value == 0 and not answer.again:
            raise DeliveryLostError
        return answer.value

    async def _run(self, script: Script, *arguments: Any, again: bool = False) -> Answer:
        """A script that settles. It waits for a server that is away for about as long as the lease may last."""
        settings = self._consumer.broker.settings
        try:
            return await self._consumer.broker.client.run(
                script, self._consumer.base, *arguments, timeout=settings.connect_timeout + 2 * settings.lease, again=again
            )
        except (RedisError, OSError) as error:
            self._consumer.doubt()
            raise self._consumer.broker.connection_error(error) from error
