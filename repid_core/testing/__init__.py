"""Help for the tests of applications and of plugins; the names below are imported when they are first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repid_core.testing.clock import ManualClock
    from repid_core.testing.events import Event, EventLog
    from repid_core.testing.harness import Harness
    from repid_core.testing.jobs import EnqueuedJob
    from repid_core.testing.sync import SyncHarness

__all__ = ["EnqueuedJob", "Event", "EventLog", "Harness", "ManualClock", "SyncHarness"]

_HOMES = {
    "EnqueuedJob": "jobs",
    "Event": "events",
    "EventLog": "events",
    "Harness": "harness",
    "ManualClock": "clock",
    "SyncHarness": "sync",
}


def __getattr__(name: str) -> Any:
    # pytest imports this package in every project that has core installed, for the entry points of its plugins.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 — as above

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
