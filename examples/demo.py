"""A coffee bar in one process: watch jobs go from enqueue to result, with nothing to install but repid-core.

Run it with `python examples/demo.py`. It takes about four seconds and leaves nothing behind. What follows a dot at the end of a
line is the feature that the line shows.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from attrs import frozen

from repid_core import (
    INJECTED,
    Connection,
    ConversionError,
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
COLOURS = {"guest": 35, "barista": 32, "baker": 33, "chef": 31, "roaster": 36, "bell": 34, "bar": 37}


def say(who: str, text: str, shows: str = "") -> None:
    """One line of the story, with the seconds since the start."""
    colour, dim, plain = (f"\033[{COLOURS[who]}m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")
    shows = f"  {dim}· {shows}{plain}" if shows else ""
    print(f"{time.monotonic() - START:5.2f} s {colour}{who:>8}{plain}  {text}{shows}", flush=True)


shelf = InMemoryBucketBroker()  # arguments and results on one shelf, so that a result can be the next job's arguments
app = Repid(Connection(InMemoryMessageBroker(), args_bucket_broker=shelf, results_bucket_broker=shelf))
router = Router()
fire_is_out = asyncio.Event()


@frozen
class Order:
    """What a guest wants."""

    guest: str
    drink: str


@router.actor(queue="bar")
async def brew(order: Order) -> str:
    """An async actor. Its argument was a dictionary or an object, and arrives as an object."""
    await asyncio.sleep(0.3)
    say("barista", f"here is your {order.drink}, {order.guest}")
    return order.drink


@router.actor(queue="bar")
def grind(grams: int) -> int:
    """A synchronous actor: it may block, for it runs in a thread."""
    time.sleep(0.5)
    say("barista", f"{grams} g of beans are ground", "a synchronous actor, in a thread")
    return grams


def oven() -> str:
    """What `bake` depends on; a test would override it."""
    return "the old oven"


@router.actor(queue="kitchen", retry_policy=lambda attempt, error: timedelta(seconds=0.5 * attempt))
async def bake(cake: str, message: MessageDependency = INJECTED, heat: Annotated[str, Depends(oven)] = INJECTED) -> str:
    """Fails twice, and succeeds on its last retry."""
    attempt = message.parameters.tried + 1
    if attempt < 3:
        say("baker", f"{heat} went out; {cake} again in {0.5 * attempt} s", f"attempt {attempt} of 3 failed")
        raise RuntimeError("the oven is cold")
    say("baker", f"{cake} is done", "a retry")
    return f"a warm {cake}"


@router.actor(queue="kitchen")
async def flambe(fruit: str) -> str:
    """Fails without retries, so its message dies; it works once somebody has put out the fire and revived it."""
    if not fire_is_out.is_set():
        say("chef", f"help, the {fruit} is on fire", "the only attempt failed")
        raise RuntimeError(f"the {fruit} is on fire")
    say("chef", f"now that is a {fruit} flambé", "a dead job, revived")
    return fruit


@router.actor(queue="beans")
async def roast(kind: str, grams: int) -> dict[str, object]:
    """Its result has the names of the next actor's arguments."""
    await asyncio.sleep(0.4)
    say("roaster", f"{grams} g of {kind} are roasted")
    return {"label": f"{kind}, {grams} g"}


@router.actor(queue="beans")
async def pack(label: str) -> str:
    """Takes its arguments from the result of `roast`."""
    say("roaster", f"packed and labelled: {label}")
    return f"a bag of {label}"


@router.actor(queue="bar")
async def ring() -> None:
    """Comes every second, until it is cancelled."""
    say("bell", "ding", "a recurring job")


async def look_at_the_dead() -> None:
    """Find the dead message, say why it died, and put it back into the queue."""
    kitchen = Queue("kitchen")
    say("bar", f"dead in the kitchen: {(await kitchen.stats()).dead}", "statistics")
    async for message in kitchen.get_messages(category=MessageCategory.DEAD):
        if death := message.death:
            say("bar", f"{message.key.topic} died, reason {death.reason.value!r}, after {death.attempts} attempt", "dead letters")
        fire_is_out.set()
        await message.reschedule()
        return  # what was taken and not settled goes back


async def main() -> None:
    """Enqueue, work, and wait for the results."""
    async with app.magic(auto_disconnect=True) as connection:
        try:
            Job.of(grind)("a lot")  # type: ignore[arg-type]
        except ConversionError as error:
            say("guest", f"can't order that: {error}", "checked before anything is sent")

        drinks: list[Job[Any]] = [Job.of(brew)(Order(guest, "cappuccino")) for guest in ("Ada", "Alan", "Edsger")]
        drinks.append(Job("brew", "bar", Priority.HIGH, args={"order": {"guest": "Grace", "drink": "espresso"}}))
        await connection.enqueue_many(drinks)
        say("bar", f"closed; {(await Queue('bar').stats()).ready} drinks wait; Grace, who came last, is in a hurry")
        tea = Job.of(brew, deferred_until=datetime.now(UTC) + timedelta(seconds=2))(Order("Barbara", "tea"))
        beans, cake, banana = Job.of(grind)(18), Job.of(bake, retries=2)("carrot cake"), Job.of(flambe)("banana")
        bell = Job.of(ring, deferred_by=timedelta(seconds=1))()
        await connection.enqueue_many([tea, beans, cake, banana, bell])

        worker = Worker(routers=[router], tasks_limit=3, handle_signals=())
        working = asyncio.create_task(worker.run())
        say("bar", "open; three jobs at a time; a tea is ordered for in 2 s")

        await drinks[-1].wait(timeout=5)
        say("guest", "Grace is served first", "priority")
        roasted: Job[dict[str, str]] = Job("roast", "beans", args={"kind": "Yirgacheffe", "grams": 250}, result_id="batch-7")
        await roasted.enqueue()
        await roasted.wait(timeout=5)
        packed: Job[str] = Job("pack", "beans", args_id="batch-7")
        await packed.enqueue()
        say("guest", f"I take {await packed.wait(timeout=5)}", "a chain: 'batch-7' was a result, then the arguments")

        try:
            await banana.wait(timeout=5)
        except JobFailedError as error:
            reason = (error.bucket.traceback or "").splitlines()[-1]
            say("guest", f"no banana? {reason}!", "the error comes back to who waits")
        await look_at_the_dead()
        say("guest", f"mmh, {await cake.wait(timeout=10)}")
        say("guest", f"thank you for the {await tea.wait(timeout=10)}", "a delayed job")
        await asyncio.sleep(1)
        await bell.cancel()

        worker.stop()
        summary = await working
        say("bar", f"closed: {summary.succeeded} succeeded, {summary.retried} retried, {summary.failed} failed")


if __name__ == "__main__":
    asyncio.run(main())
