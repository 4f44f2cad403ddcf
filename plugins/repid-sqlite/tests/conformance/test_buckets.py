"""The bucket broker keeps the whole contract."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from repid_core.abc import BucketBroker
from repid_core.testing.conformance import BucketBrokerConformance
from repid_sqlite import SqliteBucketBroker


class TestSqliteBucketBroker(BucketBrokerConformance):
    patience = timedelta(seconds=3)  # a local file
    server = f"SQLite {sqlite3.sqlite_version}"

    @pytest.fixture
    def make_broker(self, tmp_path: Path) -> Callable[[], BucketBroker]:
        self.path = tmp_path / "jobs.db"
        self.address = str(self.path)
        return lambda: SqliteBucketBroker(self.path, busy_timeout=timedelta(milliseconds=500), max_payload=1_000_000)

    async def count_stored(self, broker: BucketBroker) -> int:
        db = sqlite3.connect(self.path)
        try:
            count: int = db.execute("SELECT count(*) FROM buckets").fetchone()[0]
            return count
        finally:
            db.close()

    async def break_connection(self, broker: BucketBroker) -> None:
        self.path.rename(self.path.with_suffix(".away"))

    async def restore_connection(self, broker: BucketBroker) -> None:
        self.path.with_suffix(".away").rename(self.path)
