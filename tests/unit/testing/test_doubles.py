"""Mocks in place of actors, and other dependencies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated

import pytest

from repid_core import INJECTED, ConversionError, Depends, InvalidActorError, Job, JobFailedError, MessageDependency, Router
from repid_core.errors import UsageError
from repid_core.testing import Harness

router = Router()


def settings() -> str:
    return "production"


async def database(url: Annotated[str, Depends(settings)]) -> AsyncIterator[str]:
    yield f"database of {url}"


find_database = Depends(database)


@router.actor
async def greet(
    user_id: int,
    when: datetime | None = None,
    db: Annotated[str, find_database] = INJECTED,
    message: MessageDependency = INJECTED,
) -> str:
    return f"{user_id} from {db}"


@router.actor
def sync(number: int, /, url: Annotated[str, Depends(settings)] = INJECTED) -> str:
    return f"{number} {url}"


async def test_a_mock_records_converted_arguments_by_position_or_name() -> None:
    async with Harness([router]) as kit:
        mock = kit.mock(greet)
        await Job("greet", args={"user_id": 1, "when": "2030-01-01T00:00:00Z"}).enqueue()
        await Job("greet", args=[2]).enqueue()
        await kit.run_until_idle()
        mock.assert_any_await(1, datetime(2030, 1, 1, tzinfo=UTC))
        mock.assert_any_await(user_id=1, when=datetime(2030, 1, 1, tzinfo=UTC))
        mock.assert_awaited_with(2)
        mock.assert_awaited_with(user_id=2)
        with pytest.raises(AssertionError):
            mock.assert_awaited_with(user_id=3)
        assert mock.await_count == 2


async def test_a_mock_returns_and_raises_what_it_is_told_and_the_job_goes_its_way() -> None:
    async with Harness([router]) as kit:
        kit.mock("greet", return_value="hello")
        job = Job.of(greet)(user_id=1)
        await job.enqueue()
        await kit.run_until_idle()
        assert await job.wait() == "hello"
        kit.mock(greet, side_effect=ConnectionError("down"))
        await job.enqueue()
        with pytest.raises(ConnectionError, match="down"):
            await kit.run_until_idle()
        with pytest.raises(JobFailedError):
            await job.wait()


async def test_a_mock_of_a_synchronous_actor_and_arguments_that_do_not_fit() -> None:
    async with Harness([router]) as kit:
        mock = kit.mock(sync)
        await Job.of(sync)(3).enqueue()
        await kit.run_until_idle()
        mock.assert_awaited_once_with(3)
        await Job("sync", args=["x"]).enqueue()
        with pytest.raises(ConversionError):
            await kit.run_until_idle()


async def test_a_mock_is_for_one_test_and_for_actors_of_the_harness() -> None:
    async with Harness([router]) as kit:
        kit.mock(greet)
        with pytest.raises(InvalidActorError, match=r"'other' cannot be mocked: .* it has: greet, sync"):
            kit.mock("other")
    async with Harness([router]) as kit:
        job = Job.of(greet)(user_id=1)
        await job.enqueue()
        await kit.run_until_idle()
        assert await job.wait() == "1 from database of production"


@pytest.mark.parametrize("dependency", [database, find_database], ids=["function", "Depends"])
async def test_a_dependency_is_overridden_until_the_end(dependency: Depends) -> None:
    job = Job.of(greet)(user_id=1)
    for expected in ("1 from fake", "1 from database of production"):
        async with Harness([router]) as kit:
            if "fake" in expected:
                kit.override(dependency, lambda: "fake")
            await job.enqueue()
            await kit.run_until_idle()
            assert await job.wait() == expected


async def test_an_override_reaches_dependencies_of_dependencies_and_all_actors() -> None:
    async with Harness([router]) as kit:
        kit.override(settings, lambda: "test")
        jobs = [Job.of(greet)(user_id=1), Job.of(sync)(2)]
        await kit.connection.enqueue_many(jobs)
        await kit.run_until_idle()
        assert [await job.wait() for job in jobs] == ["1 from database of test", "2 test"]


async def test_an_override_of_what_nobody_depends_on_is_an_error() -> None:
    async with Harness([router]) as kit:
        with pytest.raises(UsageError, match="no actor of the harness depends on it"):
            kit.override(len, lambda: 1)
