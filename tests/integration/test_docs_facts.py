"""What the documentation's tables and signatures say is what the code has."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest

import repid_core
from repid_core import (
    Backend,
    Capability,
    Connection,
    Consumer,
    DeathReason,
    Delivery,
    EnqueueError,
    InMemoryBucketBroker,
    InMemoryMessageBroker,
    Job,
    Limits,
    MessageBroker,
    MessageDependency,
    Queue,
    Repid,
    Router,
    Worker,
    hookspecs,
    plugins,
)
from repid_core.middleware import EVENTS

pytestmark = pytest.mark.examples

DOCS = Path(__file__).parents[2] / "docs"


def tables(page: str) -> list[list[list[str]]]:
    """The tables of a page, row by row, without their heads; backticks are taken away."""
    text = re.sub(r"^```.*?^```$", "", (DOCS / page).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = []
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        rows = [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in table.splitlines()]
        assert set(rows[1]) == {"---"}
        found.append(rows[2:])
    return found


def names(cell: str) -> set[str]:
    return set(cell.split())


def test_the_hooks_have_the_documented_signatures() -> None:
    text = (DOCS / "reference" / "hooks.md").read_text("utf-8")
    documented = set(re.findall(r"^def (\w+\(.*): \.\.\.$", text, re.MULTILINE))
    hooks = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("repid_register_")}
    assert documented == {name + str(inspect.signature(hook)).replace("'", "") for name, hook in hooks.items()}
    assert [row[0] for row in tables("reference/hooks.md")[0]] == list(hooks)


def test_backend_has_the_documented_fields_and_defaults() -> None:
    fields = attrs.fields(Backend)
    written = {attrs.NOTHING: "", "": '""'}
    documented = [(name, default) for name, default, _ in tables("reference/hooks.md")[1]]
    assert documented == [(field.name, written.get(field.default, str(field.default))) for field in fields]
    signature = ", ".join(f.name + ("" if f.default is attrs.NOTHING else f"={f.default!r}".replace("'", '"')) for f in fields)
    assert f"`Backend({signature})`" in (DOCS / "reference" / "hooks.md").read_text("utf-8")


def test_errors_have_the_documented_texts() -> None:
    source = inspect.getsource(plugins)
    strings = re.sub(r"\{[^{}\"]*(?:\"[^\"]*\"[^{}\"]*)?\}", "…", source)
    for row in tables("reference/hooks.md")[2] + tables("reference/hooks.md")[3]:
        for fragment in row[0].split("…"):
            assert fragment.removeprefix(" is ").strip(" :,;") in strings, f"no error says {fragment!r}, of {row[0]!r}"


def test_capabilities_and_limits_are_those_of_the_code_and_of_the_in_memory_broker() -> None:
    capabilities, limits = tables("reference/capabilities-and-limits.md")
    broker = InMemoryMessageBroker()
    assert [(row[0], row[-1] == "yes") for row in capabilities] == [(c.name, c in broker.capabilities) for c in Capability]
    wanted = [(field.name, str(field.default), str(getattr(broker.limits, field.name))) for field in attrs.fields(Limits)]
    assert [(row[0], *row[-2:]) for row in limits] == wanted
    assert InMemoryBucketBroker().limits == Limits()


def test_a_message_broker_has_the_documented_methods() -> None:
    written, declared = tables("how-to/write-a-message-broker.md")
    lifecycle = {"connect", "disconnect"}
    for cls, row in zip((MessageBroker, Consumer, Delivery), written, strict=True):
        abstract = set(cls.__abstractmethods__) - lifecycle
        public = {name for name, _ in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")}
        assert (row[0], names(row[1]), names(row[2])) == (cls.__name__, abstract, public - abstract - lifecycle)
    assert len(names(written[0][1]) | names(written[1][1])) == 9
    assert [row[0] for row in declared] == [capability.name for capability in Capability]


def test_the_reasons_of_death_are_the_documented_ones() -> None:
    reasons = tables("explanation/delivery.md")[1]
    assert {row[0] for row in reasons} == {reason.value for reason in DeathReason}


async def test_middlewares_get_the_documented_facts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    seen: dict[str, set[str]] = {f"{when}_{event}": set() for event in EVENTS for when in ("before", "after")}
    called: set[str] = set()

    def listener(name: str) -> Callable[..., None]:
        def listen(_: object, **facts: Any) -> None:
            called.add(name)
            seen[name].update(fact for fact, value in facts.items() if value is not None)

        return listen

    watcher = type("Watcher", (), {name: listener(name) for name in seen})()
    await everything_happens(watcher)
    [table] = tables("how-to/middlewares.md")
    assert [row[0] for row in table] == list(EVENTS)
    assert called == set(seen)
    for event, _, facts, outcome in table:
        documented = names(facts) | ({"outcome"} if outcome else set())
        assert seen[f"before_{event}"] | (seen[f"after_{event}"] - {"error"}) == documented, event


async def everything_happens(watcher: object) -> None:
    """A run in which every event comes, with an outcome and with an error."""
    router, rejected = Router(), asyncio.Event()

    @router.actor(retry_policy=lambda attempt, error: timedelta(0))
    async def fail(number: int) -> None:
        raise ValueError(number)

    @router.actor
    async def double(number: int) -> int:
        return 2 * number

    other = Router()

    @other.actor(queue="other")
    async def give_back(message: MessageDependency) -> None:
        message.add_callback(rejected.set)
        message.reject()

    buckets = InMemoryBucketBroker()
    connection = Connection(InMemoryMessageBroker(), buckets, buckets, middlewares=[watcher])
    async with asyncio.timeout(10), Repid(connection).magic(auto_disconnect=True):
        job: Job[int] = Job("double", args=[21], id_="one")
        await job.enqueue()
        with pytest.raises(EnqueueError):
            await Job("double", args=[21], id_="one").enqueue()
        await Job("fail", args=[1], retries=1).enqueue()
        await Worker([router], messages_limit=3, handle_signals=()).run()
        assert await job.wait() == 42
        await Job("give_back", queue="other").enqueue()
        worker = Worker([other], handle_signals=())
        working = asyncio.create_task(worker.run())
        await rejected.wait()
        worker.stop()
        await working
        await Queue().declare()
        await Queue("other").flush()
        await Queue().delete()


def test_everything_that_the_package_exports_has_a_docstring() -> None:
    for name in set(repid_core.__all__) - {"INJECTED", "RetryPolicy"}:
        assert inspect.getdoc(getattr(repid_core, name)), name
