"""What a broker waits for, beside what it calls for."""

from __future__ import annotations

from typing import Any, Protocol

from repid_sqlite.transaction import Transaction


class Standing(Protocol):
    """What a broker waits for, beside its calls. It is called in the thread, unless said otherwise."""

    def waits(self) -> bool:
        """Whether there is anything."""

    def look(self, tx: Transaction, keys: set[bytes] | None) -> bool:
        """Whether some of it may be there, as `keys` were touched (None: whatever); if not, the transaction only reads."""

    def take(self, tx: Transaction) -> list[Any]:
        """Take what `look` has found."""

    def taken(self, arrivals: list[Any]) -> None:
        """It is committed: do not wait for that any more."""

    def arrive(self, arrivals: list[Any]) -> None:
        """On the loop: hand it out."""

    def due(self, tx: Transaction) -> int | None:
        """When there will be more, in microseconds since the epoch."""

    def lost(self) -> None:
        """On the loop: the session was lost, and there is a new one."""
