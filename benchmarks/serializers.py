"""The serializers of repid-msgspec beside core's JSON, with what jobs carry.

    python benchmarks/serializers.py

All take turns within each round; what is printed is the median of the rounds' ratios of time, JSON's to theirs (2 is twice as
fast), the least and the most of them in brackets, and the size of the data beside JSON's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import attrs

from repid_core.json_serializer import JsonSerializer
from repid_msgspec import MsgpackSerializer, MsgspecJsonSerializer


@attrs.frozen
class Line:
    article: UUID
    price: Decimal
    count: int


VALUES: dict[str, Any] = {
    "two arguments": {"user_id": 123, "name": "Alex"},
    "nested plain data": {
        "users": [{"id": n, "name": f"user {n}", "tags": ["a", "b"], "score": n / 7, "friend": None} for n in range(20)]
    },
    "1,000 floats": [n / 7 for n in range(1000)],
    "20 attrs objects": {
        "at": datetime(2026, 1, 2, tzinfo=UTC),
        "lines": [Line(UUID(int=n), Decimal(n) / 4, n) for n in range(20)],
    },
    "64 KiB of bytes": {"image": bytes(range(256)) * 256},
}
SERIALIZERS = (JsonSerializer(), MsgspecJsonSerializer(), MsgpackSerializer())


def duration(call: Callable[[Any], Any], value: Any, seconds: float) -> float:
    """Seconds of one call."""
    calls, start = 0, time.perf_counter()
    while (now := time.perf_counter()) < start + seconds or not calls:
        for _ in range(20):
            call(value)
        calls += 20
    return (now - start) / calls


def ratios(value: Any, what: str, rounds: int, seconds: float) -> list[str]:
    """How many times as fast as JSON each of the others is, for `dumps` or `loads`."""
    found: list[list[float]] = [[] for _ in SERIALIZERS]
    for turn in range(rounds):
        order = [(turn + n) % len(SERIALIZERS) for n in range(len(SERIALIZERS))]
        taken = {}
        for n in order:
            given = value if what == "dumps" else SERIALIZERS[n].dumps(value)
            taken[n] = duration(getattr(SERIALIZERS[n], what), given, seconds)
        for n, time_of in taken.items():
            found[n].append(taken[0] / time_of)
    return [f"{statistics.median(them):.2f} ({min(them):.2f}–{max(them):.2f})" for them in found[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.1, help="of each measurement (default: 0.1)")
    options = parser.parse_args()
    print("| | `msgspec-json` | `msgpack` |\n|---|--:|--:|")
    for name, value in VALUES.items():
        for what in ("dumps", "loads"):
            print(f"| {name}, {what} ↑ | {' | '.join(ratios(value, what, options.rounds, options.seconds))} |")
        sizes = [len(serializer.dumps(value)) for serializer in SERIALIZERS]
        print(f"| {name}, size ↓ | {' | '.join(f'{size / sizes[0]:.2f}' for size in sizes[1:])} |", flush=True)


if __name__ == "__main__":
    main()
