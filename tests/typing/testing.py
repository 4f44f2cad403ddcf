"""What type checkers know of the testing kit; checked by mypy, never run."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type
from unittest.mock import AsyncMock

from repid_core import Router
from repid_core.testing import EnqueuedJob, Event, EventLog, Harness, ManualClock

router = Router()


@router.actor
async def greet(user_id: int) -> str:
    """An actor."""
    return str(user_id)


async def test_application(repid: Harness) -> None:
    """A test of an application."""
    assert_type(repid.events, EventLog)
    assert_type(repid.events[0], Event)
    assert_type(repid.events[1:], EventLog)
    assert_type(repid.events.errors, list[BaseException])
    assert_type(repid.clock, ManualClock)
    assert_type(await repid.run_one(), Event | None)
    assert_type(repid.mock(greet, return_value="x"), AsyncMock)
    assert_type(repid.assert_enqueued(greet, args={"user_id": 1}, due=timedelta(1), count=1), EnqueuedJob)
    assert_type(repid.enqueued("greet"), list[EnqueuedJob])
    repid.assert_enqueued("greet", due=None)
    repid.assert_enqueued("greet", due="soon")  # type: ignore[arg-type]
    repid.assert_enqueued(1)  # type: ignore[arg-type]
    repid.override(greet, lambda: 1)
    repid.events.of("enqueued", "dead", actor="greet")
    repid.events.of("finished")  # type: ignore[arg-type]
    await repid.advance(5)  # type: ignore[arg-type]
    assert repid.events.kinds() == ["enqueued", "started"]
    async with Harness([router], eager=True, start=repid.clock.now()) as inner:
        assert_type(inner, Harness)

        @inner.actor
        async def declared_here() -> None: ...
