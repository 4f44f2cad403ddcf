"""A coffee bar in one process: watch jobs go from enqueue to result, with nothing to install but repid-core.

Run it with `python examples/demo.py`. It takes about five seconds and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Annotated

from attrs import frozen

from repid_core import (
    Connection,
    Depends,
    InMemoryBucketBroker,
    InMemoryMessageBroker,
    Job,
    JobFailedError,
    MessageCategory,
    MessageDependency,
    Priority,
    Queue,
    Repid,
    Router,
    Worker,
)

logging.getLogger("repid_core").setLevel(logging.CRITICAL)  # the demo tells the story itself

START = time.monotonic()
COLOURS = {"bar": 36, "barista": 32, "guest": 35, "mishap": 33, "bin": 31}


def say(who: str, text: str) -> None:
    """One line of the story, with the seconds since the start."""
    name = f"\033[{COLOURS[who]}m{who:>8}\033[0m" if sys.stdout.isatty() else f"{who:>8}"
    print(f"{time.monotonic() - START:6.2f} s {name}  {text}", flush=True)  # noqa: T201


app = Repid(
    Connection(
        message_broker=InMemoryMessageBroker(),
        args_bucket_broker=(shelf := InMemoryBucketBroker()),
        results_bucket_broker=shelf,
    )
)
router = Router()


@frozen
class Order:
    """What a guest wants."""

    guest: str
    drink: str
    shots: int = 1


@router.actor(queue="bar")
async def brew(order: Order) -> str:
    """An async actor; its argument arrives as an attrs class."""
    await asyncio.sleep(0.1 * order.shots)
    say("barista", f"{order.drink} with {order.shots} shot(s) for {order.guest} is ready")
    return f"{order.drink} for {order.guest}"


@router.actor(queue="bar")
def grind(grams: int) -> int:
    """A synchronous actor; it runs in a thread."""
    time.sleep(0.2)
    say("barista", f"{grams} g of beans ground, in a thread")
    return grams


def oven() -> dict[str, int]:
    """A dependency; tests would override it."""
    return {"temperature": 220}


@router.actor(queue="kitchen", retry_policy=lambda attempt, error: timedelta(seconds=0.4 * attempt))
async def bake(cake: str, message: MessageDependency, heat: Annotated[dict[str, int], Depends(oven)]) -> str:
    """Fails twice, and succeeds on its last retry."""
    attempt = message.parameters.tried + 1
    if attempt < 3:
        say("mishap", f"attempt {attempt}: the oven has {heat['temperature'] - 100 // attempt} degrees; {cake} comes again")
        raise RuntimeError("the oven is cold")
    say("barista", f"attempt {attempt}: {cake} is baked")
    return f"a warm {cake}"


@router.actor(queue="kitchen")
async def flambe(dish: str) -> str:
    """Never succeeds: its message dies."""
    raise RuntimeError(f"the {dish} is on fire")


@router.actor(queue="beans")
async def roast(kind: str, grams: int) -> dict[str, object]:
    """Its result is the next one's arguments."""
    say("barista", f"{grams} g of {kind} roasted")
    return {"label": f"{kind}, {grams} g"}


@router.actor(queue="beans")
async def pack(label: str) -> str:
    """Takes its arguments from the bucket of `roast`'s result."""
    say("barista", f"packed: {label}")
    return f"a bag of {label}"


@router.actor(queue="bar")
async def ring(message: MessageDependency) -> None:
    """Comes every second, until it settles itself for good."""
    message.add_callback(lambda: say("bar", "the clock rings every second"))


async def main() -> None:
    """Enqueue everything, run a worker beside, and wait for the results."""
    async with app.magic(auto_disconnect=True) as connection:
        say("bar", "brokers, buckets and worker are all in this process")
        worker = Worker(routers=[router], handle_signals=())
        working = asyncio.create_task(worker.run())

        orders = [
            Job.of(brew)(Order("Ada", "cappuccino")),
            Job.of(brew, priority=Priority.HIGH)(Order("Grace", "espresso", shots=2)),
        ]
        await connection.enqueue_many(orders)
        later = Job("brew", queue="bar", args={"order": {"guest": "Alan", "drink": "latte"}})
        delayed = Job(
            "brew",
            queue="bar",
            args={"order": {"guest": "Edsger", "drink": "tea"}},
            deferred_until=datetime.now(UTC) + timedelta(seconds=1.5),
        )
        await later.enqueue()
        await delayed.enqueue()
        say("guest", "four drinks ordered, one of them for in 1.5 s")
        beans, cake = Job.of(grind)(18), Job.of(bake, retries=2)("carrot cake")
        await connection.enqueue_many([beans, cake])
        burning = Job.of(flambe)("banana")
        await burning.enqueue()
        bell = Job.of(ring, deferred_by=timedelta(seconds=1))()
        await bell.enqueue()

        first = Job("roast", queue="beans", args={"kind": "Yirgacheffe", "grams": 250}, result_id="roasted")
        await first.enqueue()
        await first.wait(timeout=5)
        second: Job[str] = Job("pack", queue="beans", args_id="roasted")
        await second.enqueue()
        say("guest", f"the chain gave {await second.wait(timeout=5)!r}: one id was a result, then the arguments")

        for job in (*orders, later, delayed, cake):
            say("guest", f"thank you for {await job.wait(timeout=10)!r}")
        say("guest", f"{await beans.wait(timeout=5)} g, as promised")
        try:
            await burning.wait(timeout=5)
        except JobFailedError as error:
            say("bin", f"no banana: {error.bucket.exception}, and the message is kept as dead")
        await bell.cancel()

        kitchen = Queue("kitchen")
        say("bin", f"{kitchen}: {(await kitchen.stats()).dead} dead")
        async for message in kitchen.get_messages(category=MessageCategory.DEAD):
            say("bin", f"{message.key.topic} died of {message.death.reason.value if message.death else '?'}; acknowledged")
            await message.ack()
            break

        worker.stop()
        summary = await working
        say("bar", f"closed: {summary.succeeded} succeeded, {summary.retried} retried, {summary.failed} failed")


if __name__ == "__main__":
    asyncio.run(main())
