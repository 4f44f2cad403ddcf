"""The findings of `repid plugin test`, for programs and for people."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final

from repid_core.cli.plugin_target import Target

#: Outcomes in the order in which people want to read them, and what each means.
MEANINGS: Final = {
    "broken": "what the suite saw is not what users may rely on: mend it before you release",
    "deviating": "the promise is not kept by design, and the reason is told",
    "not run": "the test was left out, so that nothing is known",
    "not declared": "the backend does not claim it: core refuses to ask for it, or the suite cannot look from here",
    "kept": "the suite saw it",
}
_CAPABILITIES: Final = {
    "DELAY": "delays, retries and recurring jobs are refused",
    "PRIORITY": "other priorities than MEDIUM are refused",
    "TOPICS": "messages of other topics may come after a back-off",
    "UNIQUE": "on_duplicate='keep' and 'replace' are refused",
    "CANCEL": "Job.cancel is refused",
    "BROWSE": "listing messages without taking them is refused",
    "DELAYED_ACCESS": "consuming messages that are not due is refused",
    "ATOMIC_REQUEUE": "a crash while requeueing may leave a duplicate",
    "POISON": "a message that kills its workers comes again without end",
}
_WIDTH: Final = 100


def of(target: Target, suites: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """All findings, JSON-able."""
    found = [{"suite": path, **suite} for path, suite in suites.items()]
    return {"format": 1, "plugin": target.distribution, "version": target.version, "suites": found}


def is_broken(report: Mapping[str, Any]) -> bool:
    """Whether any promise is broken."""
    return any(promise["outcome"] == "broken" for suite in report["suites"] for promise in suite["promises"])


def text(report: Mapping[str, Any], *, quiet: bool = False) -> str:
    """The same, to be read."""
    return "\n".join(_lines(report, quiet=quiet))


def _lines(report: Mapping[str, Any], *, quiet: bool) -> Iterator[str]:
    for suite in report["suites"]:
        for outcome, meaning in MEANINGS.items():
            promises = sorted((p for p in suite["promises"] if p["outcome"] == outcome), key=_place)
            if promises and (outcome == "broken" or not quiet):
                yield f"{suite['suite']}, {outcome}: {meaning}"
                yield from _not_declared(promises) if outcome == "not declared" else chain(*map(_promise, promises))
                yield ""
        if not quiet:
            yield from _refused(suite)
    yield f"{report['plugin']} {report['version']}"
    yield from (f"  {suite['suite']}: {suite['summary']}" for suite in report["suites"])


def _place(promise: Mapping[str, Any]) -> tuple[str, int]:
    letters = promise["number"].rstrip("0123456789")
    return letters, int(promise["number"].removeprefix(letters))


def _promise(promise: Mapping[str, Any]) -> Iterator[str]:
    yield from _wrapped(f"  {promise['number']:<4} ", promise["text"])
    if promise["reason"]:
        seen = promise["reason"].partition("\nSeen: ")[2] or promise["reason"]
        yield from _wrapped(f"       {promise['test']}: ", seen)
    for name, value in promise["measured"].items():
        yield from _wrapped("       measured: ", f"{name}: {value}")


def _not_declared(promises: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """By reason, as one often explains many."""
    for reason in dict.fromkeys(promise["reason"] for promise in promises):
        yield from _wrapped("  ", f"{_explained(reason)}:")
        for promise in promises:
            if promise["reason"] == reason:
                yield from _wrapped(f"    {promise['number']:<4} ", promise["text"])


def _explained(reason: str) -> str:
    if (needed := re.match(r"hook (\w+)", reason)) is not None:
        return f"needs {needed[1]}(), which only the plugin's own tests can have"
    name = reason.removeprefix("capability ")
    return f"{reason}, so that {_CAPABILITIES[name]}" if name in _CAPABILITIES else reason


def _refused(suite: Mapping[str, Any]) -> Iterator[str]:
    if refused := suite.get("refuses"):
        yield f"{suite['suite']}, types that it refuses, and says so:"
        for reason in refused:
            yield from _wrapped("  ", reason)
        yield ""


def _wrapped(head: str, words: str) -> list[str]:
    indent = " " * (len(head) if len(head) < 10 else len(head) - len(head.lstrip()) + 2)
    return textwrap.wrap(" ".join(words.split()), _WIDTH, initial_indent=head, subsequent_indent=indent) or [head.rstrip()]
