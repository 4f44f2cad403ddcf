"""An application in memory, and the command called in this process."""

from __future__ import annotations

import asyncio
import json
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from repid_core import Connection, Death, DeathReason, Job, MessageCategory
from repid_core.cli import main

SHOP = """
    from repid_core import Connection, InMemoryBucketBroker, InMemoryMessageBroker, Repid, Router, Worker

    connection = Connection(InMemoryMessageBroker(), results_bucket_broker=InMemoryBucketBroker())
    app = Repid(connection)
    router, other = Router(), Router()

    @router.actor(queue="mail")
    async def greet(user_id: int, name: str) -> str:
        return f"Hello {name}, your id is {user_id}."

    @other.actor
    async def tidy() -> None: ...

    def make():
        return connection

    def fail():
        raise OSError("out of paper")

    def wrong():
        return 3
"""


class Shop:
    """The application, as a module in the current directory, and the command on it."""

    def __init__(self) -> None:
        self.runner = CliRunner()

    @property
    def connection(self) -> Connection:
        import shop

        return shop.connection  # type: ignore[no-any-return]

    def __call__(self, *words: str, status: int | None = 0, app: bool = True, **options: Any) -> Result:
        """Run the command; the exit status is to be `status`."""
        line = [*words, "--app", "shop:app"] if app else list(words)
        result = self.runner.invoke(main, line, prog_name="repid", **options)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert status is None or result.exit_code == status, result.output
        return result

    def json(self, *words: str, status: int = 0) -> Any:
        return json.loads(self(*words, "--json", status=status).stdout)

    def lines(self, *words: str, status: int = 0) -> list[Any]:
        """One object for each line."""
        return [json.loads(line) for line in self(*words, "--json", status=status).stdout.splitlines()]

    def do(self, work: Callable[[Connection], Awaitable[Any]]) -> Any:
        """Something that the application does meanwhile."""

        async def main() -> Any:
            async with self.connection as connection:
                return await work(connection)

        return asyncio.run(main())

    def bury(self, *ids: str, queue: str = "mail", topic: str = "greet", age: timedelta = timedelta(0), **options: Any) -> None:
        """Let jobs of these ids be dead, for so long."""

        async def work(connection: Connection) -> None:
            for id_ in ids:
                await Job(topic, queue=queue, id_=id_, connection=connection, **options).enqueue()
            consumer = connection.message_broker.consumer(queue, None, prefetch=len(ids))
            await consumer.start()
            for delivery in await consumer.receive(len(ids)):
                death = Death(DeathReason.FAILED, datetime.now(UTC) - age, 1, "Traceback\nValueError: no stamps")
                await delivery.nack(death)
            await consumer.close()

        self.do(work)

    def ids(self, category: MessageCategory, queue: str = "mail") -> list[str]:
        async def work(connection: Connection) -> list[str]:
            return [found.envelope.key.id_ async for found in connection.message_broker.browse(queue, category, limit=10_000)]

        return self.do(work)  # type: ignore[no-any-return]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    (tmp_path / "shop.py").write_text(textwrap.dedent(SHOP), "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in ("REPID_APP", "REPID_CONFIG", "REPID_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    yield Shop()
    sys.modules.pop("shop", None)


def _fits(shape: Any, value: Any) -> bool:
    """Whether a value has exactly the keys that a command documents, however deep."""
    if isinstance(shape, dict):
        if value is None:
            return False
        optional = {key for key, words in shape.items() if isinstance(words, str) and "only with" in words}
        return set(shape) - optional <= set(value) <= set(shape) and all(_fits(shape[key], value[key]) for key in value)
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(shape[0], item) for item in value)
    if value is None:
        return "null" in shape or "what the actor" in shape
    kinds: dict[str, Any] = {"text": str, "ISO 8601": str, "number": (int, float), "true or false": bool, "object": dict}
    return all(isinstance(value, kind) for words, kind in kinds.items() if shape.startswith(words))


@pytest.fixture
def fits() -> Callable[[Any, Any], bool]:
    return _fits
