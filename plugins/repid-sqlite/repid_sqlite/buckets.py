"""What is done with buckets in the file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from attrs import frozen

from repid_sqlite.transaction import Transaction, action

_FREED: Final = 200  # expired buckets that one store removes, so that none takes long


@frozen
class Stored:
    """A bucket on its way in: its id in the file, its bytes, and its end in microseconds since the epoch."""

    id_: str
    data: bytes
    expires: int | None


def _store(tx: Transaction, request: tuple[str, Sequence[Stored]]) -> None:
    channel, buckets = request
    tx.execute(
        "DELETE FROM buckets WHERE number IN (SELECT number FROM buckets WHERE expires <= ? ORDER BY expires LIMIT ?)",
        tx.now, _FREED,
    )  # fmt: skip
    for bucket in buckets:
        tx.execute(
            "INSERT INTO buckets (id, data, expires) VALUES (?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET data = excluded.data, expires = excluded.expires",
            bucket.id_, bucket.data, bucket.expires,
        )  # fmt: skip
        tx.touch(channel, bucket.id_)


def find(tx: Transaction, ids: Sequence[str]) -> dict[str, bytes]:
    """Those of these buckets that are there."""
    select = "SELECT id, data FROM buckets WHERE id IN (SELECT value FROM json_each(?)) AND (expires IS NULL OR expires > ?)"
    return dict(tx.execute(select, json.dumps(ids), tx.now))


def _delete(tx: Transaction, ids: Sequence[str]) -> None:
    tx.execute("DELETE FROM buckets WHERE id IN (SELECT value FROM json_each(?))", json.dumps(ids))


STORE, FIND, DELETE = action(_store), action(find, writes=False), action(_delete)
