"""The suite for middlewares: harmless ones keep its promises, and each fault is caught by the test of its promise."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
from attrs import evolve

from repid_core.abc import Middleware
from repid_core.data import Enqueued, Envelope
from repid_core.testing.conformance.middleware import MiddlewareConformance
from repid_core.testing.conformance.suite import PromiseBroken

Enqueue = Callable[[Sequence[Envelope]], Awaitable[Sequence[Any]]]
Run = Callable[[Envelope], Awaitable[Any]]


class Watches(Middleware):
    """Observes, and wraps both."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def around_enqueue(self, envelopes: Sequence[Envelope], call_next: Enqueue) -> Sequence[Any]:
        return await call_next([evolve(envelope, headers={**envelope.headers, "seen": "yes"}) for envelope in envelopes])

    async def around_actor_run(self, envelope: Envelope, call_next: Run) -> Any:
        self.seen.append(envelope.headers["seen"])
        return await call_next(envelope)

    def after_ack(self, envelope: Envelope) -> None:
        self.seen.append(envelope.key.id_)


class TestHarmless(MiddlewareConformance):
    @pytest.fixture
    def make_middleware(self) -> Callable[[], Any]:
        return Watches


class TestFunction(MiddlewareConformance):
    @pytest.fixture
    def make_middleware(self) -> Callable[[], Any]:
        def before_enqueue(envelope: Envelope) -> None: ...

        return lambda: before_enqueue


class Misspelt:
    def after_actor_runs(self, envelope: Envelope) -> None: ...


class Eager(Watches):
    def __init__(self) -> None:
        super().__init__()
        asyncio.get_running_loop()


class Doubles(Watches):
    async def around_actor_run(self, envelope: Envelope, call_next: Run) -> Any:
        await call_next(envelope)
        return await call_next(envelope)


class LosesResults(Watches):
    async def around_actor_run(self, envelope: Envelope, call_next: Run) -> Any:
        await call_next(envelope)


class TurnsRound(Watches):
    async def around_enqueue(self, envelopes: Sequence[Envelope], call_next: Enqueue) -> Sequence[Any]:
        return await call_next(envelopes[::-1])


class SendsOne(Watches):
    async def around_enqueue(self, envelopes: Sequence[Envelope], call_next: Enqueue) -> Sequence[Any]:
        return [*await call_next(envelopes[:1]), *[Enqueued.KEPT] * (len(envelopes) - 1)]


class HidesErrors(Watches):
    async def around_actor_run(self, envelope: Envelope, call_next: Run) -> Any:
        with suppress(Exception):
            return await call_next(envelope)


class Undying(Watches):
    async def around_actor_run(self, envelope: Envelope, call_next: Run) -> Any:
        with suppress(asyncio.CancelledError):
            return await call_next(envelope)


class Raises(Watches):
    def after_nack(self, envelope: Envelope) -> None:
        raise ValueError(envelope.key.id_)


class OneByOne(Watches):
    def __init__(self) -> None:
        super().__init__()
        self._running = False

    async def around_actor_run(self, envelope: Envelope, call_next: Run) -> Any:
        if self._running:
            raise RuntimeError("busy")
        self._running = True
        try:
            return await call_next(envelope)
        finally:
            self._running = False


@pytest.mark.parametrize(
    ("fault", "test"),
    [
        (Misspelt, "test_it_can_be_added"),
        (Eager, "test_making_it_opens_nothing"),
        (Doubles, "test_a_job_goes_through"),
        (LosesResults, "test_a_job_goes_through"),
        (TurnsRound, "test_a_batch_goes_through"),
        (SendsOne, "test_a_batch_goes_through"),
        (HidesErrors, "test_failures_go_through"),
        (Undying, "test_cancellation_goes_through"),
        (Raises, "test_observers_raise_nothing"),
        (OneByOne, "test_many_at_once"),
    ],
)
async def test_each_fault_is_caught(fault: Callable[[], Any], test: str, caplog: pytest.LogCaptureFixture) -> None:
    suite = type("Suite", (MiddlewareConformance,), {"time_limit": 1.0})()
    method = getattr(suite, test)
    fixtures = {"make_middleware": fault, "caplog": caplog}
    wanted = {name: fixtures[name] for name in inspect.signature(method).parameters}
    with pytest.raises(PromiseBroken) as caught:
        await awaited(method(**wanted))
    assert caught.value.promise is MiddlewareConformance.promises()[test]


async def awaited(result: Awaitable[None] | None) -> None:
    """Sync tests break at their call, async ones here."""
    if result is not None:
        await result
