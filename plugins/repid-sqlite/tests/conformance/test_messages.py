"""The message broker keeps the whole contract, on one file, with clients that are as good as processes."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from repid_core.abc import Consumer, MessageBroker
from repid_core.testing.conformance import MessageBrokerConformance
from repid_sqlite import SqliteMessageBroker


class TestSqliteMessageBroker(MessageBrokerConformance):
    patience = timedelta(seconds=3)  # a local file
    server = f"SQLite {sqlite3.sqlite_version}"

    @pytest.fixture
    def make_broker(self, tmp_path: Path) -> Callable[[], MessageBroker]:
        self.path = tmp_path / "jobs.db"
        self.address = str(self.path)
        self.lock: sqlite3.Connection | None = None
        return lambda: SqliteMessageBroker(
            f"sqlite://{self.path}",
            lease=timedelta(seconds=1),
            busy_timeout=timedelta(milliseconds=500),
            max_payload=1_000_000,
        )

    async def kill_consumer(self, broker: MessageBroker, consumer: Consumer) -> None:
        assert isinstance(broker, SqliteMessageBroker)
        broker.database.abandon()

    async def break_connection(self, broker: MessageBroker) -> None:
        self.lock = sqlite3.connect(self.path, isolation_level=None)
        self.lock.execute("BEGIN IMMEDIATE")

    async def restore_connection(self, broker: MessageBroker) -> None:
        assert self.lock is not None
        self.lock.close()
