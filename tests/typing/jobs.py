"""What type checkers know of actors and jobs; checked by mypy, never run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, assert_type

from repid_core import (
    INJECTED,
    Depends,
    Job,
    Message,
    MessageDependency,
    Queue,
    Receipt,
    ResultBucket,
    Router,
    RouterDefaults,
    Worker,
)

router = Router(RouterDefaults(queue="mail"))


@router.actor
async def greet(user_id: int, name: str = "you") -> str:
    """An async actor, declared by the bare decorator."""
    return f"{user_id}: {name}"


@router.actor(queue="numbers", run_in_process=True)
def double(number: int, /) -> int:
    """A synchronous one, declared with arguments, its parameter positional-only."""
    return 2 * number


async def connect() -> float:
    """A dependency."""
    return 1.0


@Worker(routers=[router]).actor
async def with_injected(
    user_id: int, message: MessageDependency = INJECTED, database: Annotated[float, Depends(connect)] = INJECTED
) -> None:
    """An actor with injected parameters, which callers leave out; the worker is a router itself."""
    assert_type(message, MessageDependency)
    assert_type(database, float)


@router.actor
async def collect(*numbers: int, **names: str) -> list[int]:
    """One that takes any number of arguments."""
    return [*numbers, len(names)]


# The decorator keeps the type of the function.
direct: Callable[[int, str], Coroutine[Any, Any, str]] = greet
assert_type(double(1), int)


async def calls() -> None:
    """The functions can be called as before."""
    assert_type(await greet(1, name="Alex"), str)
    await greet("one")  # type: ignore[arg-type]


# Jobs are of the type that the actor returns, whether it is async or not.
assert_type(Job.of(greet)(user_id=1, name="x"), Job[str])
assert_type(Job.of(greet, retries=3, queue="other")(1), Job[str])
assert_type(Job.of(double)(1), Job[int])
assert_type(Job.of(with_injected)(user_id=1), Job[None])
assert_type(Job.of(collect)(1, 2, a="x"), Job[list[int]])

# Wrong calls are flagged.
Job.of(greet)()  # type: ignore[call-arg]
Job.of(greet)(1, "x", 3)  # type: ignore[call-arg]
Job.of(greet)(user_id=1, nmae="x")  # type: ignore[call-arg]
Job.of(greet)(user_id="one")  # type: ignore[arg-type]
Job.of(double)(number=1)  # type: ignore[call-arg]
Job.of(double)("one")  # type: ignore[arg-type]
Job.of(collect)("one")  # type: ignore[arg-type]
Job.of(with_injected)()  # type: ignore[call-arg]
Job.of("greet")  # type: ignore[call-overload]


async def results() -> None:
    """What using a job gives."""
    job = Job.of(greet)(1)
    assert_type(await job.enqueue(), Receipt)
    assert_type(await job.wait(timeout=5), str)
    assert_type(await job.result, ResultBucket | None)
    assert_type(await job.cancel(), bool)
    assert_type(job.queue, Queue)
    by_name: Job[dict[str, int]] = Job("greet", args={"user_id": 1})
    assert_type(await by_name.wait(), dict[str, int])
    async for message in Queue().get_messages():
        assert_type(message, Message)


# What is not the decorator's is flagged too.
router.actor(name=3)  # type: ignore[call-overload]
router.actor(retry_policy=3)  # type: ignore[call-overload]
Job("greet", retries="3")  # type: ignore[arg-type]
Job("greet", on_duplicate="ignore")  # type: ignore[arg-type]
