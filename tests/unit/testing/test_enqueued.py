"""Assertions about what was enqueued, and what they say when they fail."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from textwrap import dedent
from typing import Any
from unittest.mock import ANY

import pytest

from repid_core import INJECTED, Job, MessageDependency, Priority, Router
from repid_core.testing import Harness

router = Router()


@router.actor(queue="mail")
async def greet(user_id: int, name: str = "you", message: MessageDependency = INJECTED) -> None: ...


@router.actor
async def count(first: int, second: int = 0) -> None: ...


@pytest.fixture
async def kit() -> Any:
    async with Harness([router], start=datetime(2030, 1, 1, 12, tzinfo=UTC)) as harness:
        yield harness


def failure(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(AssertionError) as raised:
        call(*args, **kwargs)
    return str(raised.value)


async def test_by_name_or_function_with_arguments_by_name_or_position(kit: Harness) -> None:
    await Job.of(greet)(1, name="Alex").enqueue()
    await Job("greet", queue="mail", args=[2, "Sam"]).enqueue()
    for actor in ("greet", greet):
        for args in ({"user_id": 1, "name": "Alex"}, [1, "Alex"], {"user_id": 2, "name": "Sam"}, [2, "Sam"], [2, ANY]):
            kit.assert_enqueued(actor, args=args)
    assert kit.assert_enqueued(greet).args == [2, "Sam"], "the last"
    assert [job.args for job in kit.enqueued(greet)] == [{"user_id": 1, "name": "Alex"}, [2, "Sam"]]


async def test_all_arguments_count(kit: Harness) -> None:
    await Job.of(greet)(1, name="Alex").enqueue()
    assert "args['name']: 'Alex', not wanted" in failure(kit.assert_enqueued, greet, args={"user_id": 1})
    assert "args['x']: missing, wanted 1" in failure(kit.assert_enqueued, greet, args={"user_id": 1, "name": "Alex", "x": 1})
    kit.assert_not_enqueued(greet, args={"user_id": 1})
    kit.assert_enqueued(greet, args={"user_id": ANY, "name": "Alex"})


async def test_values_are_compared_as_they_travel(kit: Harness) -> None:
    when = datetime(2030, 1, 1, 9, tzinfo=UTC)
    await Job("other", args={"when": when, "sizes": (1, 2)}).enqueue()
    kit.assert_enqueued("other", args={"when": when, "sizes": [1, 2]})
    kit.assert_enqueued("other", args={"when": "2030-01-01T09:00:00+00:00", "sizes": (1, ANY)})


async def test_no_arguments(kit: Harness) -> None:
    await Job("other").enqueue()
    kit.assert_enqueued("other", args=None)
    kit.assert_enqueued("other", args={})


async def test_the_only_argument(kit: Harness) -> None:
    await Job("count", args=5).enqueue()
    for args in (5, [5], {"first": 5}):
        kit.assert_enqueued(count, args=args)


async def test_arguments_in_a_bucket_are_read(kit: Harness) -> None:
    await Job("other", args={"x": 1}, use_args_bucketer=True).enqueue()
    kit.assert_enqueued("other", args={"x": 1})


async def test_everything_else_that_a_job_has(kit: Harness) -> None:
    due = kit.clock.now() + timedelta(hours=1)
    await Job("other", queue="q", id_="one", priority=Priority.HIGH, deferred_until=due, headers={"a": "1", "b": "2"}).enqueue()
    kit.assert_enqueued(
        "other", queue="q", id_="one", priority=Priority.HIGH, due=timedelta(hours=1), headers={"a": "1"}, count=1
    )
    kit.assert_enqueued("other", due=due)
    text = failure(
        kit.assert_enqueued, "other", queue="r", id_="two", priority=Priority.LOW, due=None, headers={"a": "2", "c": "3"}
    )
    for line in ("queue: 'q', wanted 'r'", "id_: 'one', wanted 'two'", "due: 2030-01-01T13:00:00+00:00, wanted None"):
        assert line in text
    assert "headers['a']: '1', wanted '2'" in text
    assert "headers['c']: missing, wanted '3'" in text
    assert "priority: <Priority.HIGH: 9>, wanted <Priority.LOW: 0>" in text


async def test_the_text_shows_what_was_enqueued_instead_the_nearest_first(kit: Harness) -> None:
    await Job("count", args={"first": 1}).enqueue()
    await Job.of(greet)(7, name="Kim").enqueue()
    await Job.of(greet)(1, name="Sam").enqueue()
    await Job.of(greet)(1, name="Alexa").enqueue()
    assert failure(kit.assert_enqueued, "greet", args={"user_id": 1, "name": "Alex"}) == dedent("""\
        no job was enqueued: 'greet' with
            args={'user_id': 1, 'name': 'Alex'}
        4 jobs were enqueued, the nearest first:
          1. greet  queue='mail'  args={'user_id': 1, 'name': 'Alexa'}
               args['name']: 'Alexa', wanted 'Alex'
          2. greet  queue='mail'  args={'user_id': 1, 'name': 'Sam'}
               args['name']: 'Sam', wanted 'Alex'
          3. greet  queue='mail'  args={'user_id': 7, 'name': 'Kim'}
               args['user_id']: 7, wanted 1
               args['name']: 'Kim', wanted 'Alex'
          4. count  queue='default'  args={'first': 1}""")


async def test_the_text_is_short_however_much_was_enqueued(kit: Harness) -> None:
    for number in range(50):
        await Job("other", args={"number": number, "text": "x" * 1000}).enqueue()
    text = failure(kit.assert_enqueued, "other", args={"number": 44, "text": "y"})
    assert text.endswith("… and 45 more")
    assert "1. other  queue='default'  args={'number': 44," in text
    assert max(map(len, text.splitlines())) < 200


async def test_nested_values_differ_by_path(kit: Harness) -> None:
    await Job("other", args={"order": {"lines": [{"sku": "a", "n": 1}, {"sku": "b", "n": 2}]}}).enqueue()
    text = failure(kit.assert_enqueued, "other", args={"order": {"lines": [{"sku": "a", "n": 1}, {"sku": "b", "n": 3}]}})
    assert "args['order']['lines'][1]['n']: 2, wanted 3" in text


async def test_counts_and_nothing(kit: Harness) -> None:
    assert failure(kit.assert_enqueued, "greet") == "no job was enqueued: 'greet'\nnothing was enqueued"
    await Job("other").enqueue()
    await Job("other").enqueue()
    assert failure(kit.assert_enqueued, "other", count=1).startswith("2 jobs were enqueued, and not 1: 'other'")
    assert failure(kit.assert_not_enqueued, "other").startswith("2 such jobs were enqueued: 'other'\n  other  queue=")
    with pytest.raises(ValueError, match="count=0"):
        kit.assert_enqueued("other", count=0)
    kit.assert_not_enqueued(greet)


async def test_a_job_that_was_kept_out_as_a_duplicate_was_not_enqueued(kit: Harness) -> None:
    for number in range(2):
        await Job("other", id_="one", args=[number], on_duplicate="keep").enqueue()
    kit.assert_enqueued("other", args=[0], count=1)
    kit.assert_not_enqueued("other", args=[1])


async def test_what_a_middleware_of_the_application_changed_is_what_was_enqueued() -> None:
    from attrs import evolve

    async def around_enqueue(envelopes: Any, call_next: Any) -> Any:
        return await call_next([evolve(envelope, headers={"trace": "1"}) for envelope in envelopes])

    async with Harness(middlewares=[around_enqueue]) as kit:
        await Job("other").enqueue()
        kit.assert_enqueued("other", headers={"trace": "1"})
