"""Makes `docs/reference/compatibility.md` of what the conformance suites have found.

`nox -s plugins` writes the reports, and compares. `python -m tests.conformance.matrix .nox/.cache/conformance/*.json` takes over
what they say, of all suites that ran, into `compatibility.json` beside the page, and writes the page from that.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from repid_core import Capability, Limits, __version__
from repid_core.plugins import Kind, plugins
from repid_core.testing.conformance import (
    BucketBrokerConformance,
    ConformanceSuite,
    ConverterConformance,
    MessageBrokerConformance,
    Promise,
    SerializerConformance,
)

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "reference" / "compatibility.md"
DATA: Final = PAGE.with_suffix(".json")
BEGIN: Final = "<!-- What follows is written by tests/conformance/matrix.py. -->\n"
MARKS: Final = {"kept": "yes", "not declared": "–", "deviating": "differs", "broken": "BROKEN", "not run": "?"}

Found = dict[str, Any]


@frozen
class Column:
    """One suite of the house.

    Attributes:
        name: What the page calls it.
        backend: By what name users choose it.
        distribution: Whose tests the suite is in, and what its report is called.
        suite: Its class, behind the file.
    """

    name: str
    backend: str
    distribution: str
    suite: str


@frozen
class Table:
    """The suites of one kind of backend."""

    kind: Kind[Any]
    suite: type[ConformanceSuite]
    columns: tuple[Column, ...]

    def promises(self) -> list[tuple[str, Promise]]:
        """By name of the test, in the order of their numbers."""
        return sorted(self.suite.promises().items(), key=lambda found: place(found[1].number))


def place(number: str) -> tuple[bool, str, int]:
    """Where a promise stands: the contract's own numbers first, then those of the life of a client (L)."""
    letters = number.rstrip("0123456789")
    return letters == "L", letters, int(number[len(letters) :])


TABLES: Final = (
    Table(
        Kind.MESSAGE_BROKER,
        MessageBrokerConformance,
        (
            Column("memory", "memory", "repid-core", "test_memory.py::TestInMemoryMessageBroker"),
            Column("sqlite", "sqlite", "repid-sqlite", "test_messages.py::TestSqliteMessageBroker"),
            Column("redis", "redis", "repid-redis", "test_messages.py::TestOnRedis"),
            Column("redis, Valkey", "redis", "repid-redis", "test_messages.py::TestOnValkey"),
            Column("rabbitmq, classic", "rabbitmq", "repid-rabbitmq", "test_messages.py::TestOnClassicQueues"),
            Column("rabbitmq, quorum", "rabbitmq", "repid-rabbitmq", "test_messages.py::TestOnQuorumQueues"),
        ),
    ),
    Table(
        Kind.BUCKET_BROKER,
        BucketBrokerConformance,
        (
            Column("memory", "memory", "repid-core", "test_memory.py::TestInMemoryBucketBroker"),
            Column("sqlite", "sqlite", "repid-sqlite", "test_buckets.py::TestSqliteBucketBroker"),
            Column("redis", "redis", "repid-redis", "test_buckets.py::TestOnRedis"),
            Column("redis, Valkey", "redis", "repid-redis", "test_buckets.py::TestOnValkey"),
            Column("redis, Cluster", "redis", "repid-redis", "test_buckets.py::TestOnCluster"),
            Column("redis, polled", "redis", "repid-redis", "test_buckets.py::TestPolled"),
            Column("s3, moto", "s3", "repid-s3", "test_buckets.py::TestMoto"),
            Column("s3, SeaweedFS", "s3", "repid-s3", "test_buckets.py::TestSeaweedFS"),
        ),
    ),
    Table(
        Kind.SERIALIZER,
        SerializerConformance,
        (
            Column("json", "json", "repid-core", "test_json.py::TestJson"),
            Column("msgpack", "msgpack", "repid-msgspec", "test_conformance.py::TestMsgpack"),
            Column("msgspec-json", "msgspec-json", "repid-msgspec", "test_conformance.py::TestMsgspecJson"),
        ),
    ),
    Table(
        Kind.CONVERTER,
        ConverterConformance,
        (
            Column("cattrs", "cattrs", "repid-core", "test_cattrs.py::TestCattrs"),
            Column("pydantic", "pydantic", "repid-pydantic", "test_conformance.py::TestPydantic"),
        ),
    ),
)


# -- reports to data ---------------------------------------------------------------------------------------------------


def found_in(reports: Iterable[Path]) -> Found:
    """What these reports say, by kind and column. Columns of which nothing was run are left out.

    Raises:
        SystemExit: A report has a suite that has no column.
    """
    data: Found = {}
    for path in reports:
        for suite in json.loads(path.read_text("utf-8"))["suites"]:
            kind, column = column_of(path.stem, suite["suite"])
            outcomes = {each["test"]: said(each) for each in suite["promises"]}
            if set(outcomes.values()) == {"not run"}:
                sys.stderr.write(f"{path.stem}, {column.name}: nothing was run\n")
                continue
            found = {"on": suite.get("server", ""), "outcomes": dict(sorted(outcomes.items()))}
            if "capabilities" in suite:
                found["capabilities"] = suite["capabilities"]
            data.setdefault(str(kind), {})[column.name] = found
    return data


def column_of(distribution: str, suite: str) -> tuple[Kind[Any], Column]:
    """Where a suite belongs."""
    for table in TABLES:
        for column in table.columns:
            if column.distribution == distribution and suite.endswith(column.suite):
                return table.kind, column
    raise SystemExit(f"{suite} of {distribution} has no column: add it to TABLES of {__name__}")


def said(promise: Mapping[str, Any]) -> str:
    """An outcome and its reason as one text."""
    return f"{promise['outcome']}: {promise['reason']}" if promise["reason"] else str(promise["outcome"])


def limits() -> Found:
    """What each broker declares with its defaults, by kind and backend; it asks for all plugins."""
    made: Found = {}
    for table in TABLES[:2]:
        for backend in dict.fromkeys(column.backend for column in table.columns):
            cls = plugins().settings_class(table.kind, plugins().backend(table.kind, backend))
            assert cls is not None
            settings = cls(**{"url": URLS[backend]} if backend in URLS else {})
            declared: Limits = plugins().build(table.kind, backend, settings).limits
            names = OF_BUCKETS if table.kind is Kind.BUCKET_BROKER else tuple(Limits.__annotations__)
            made.setdefault(str(table.kind), {})[backend] = {name: written(getattr(declared, name)) for name in names}
    return made


OF_BUCKETS: Final = ("wake_up", "max_payload")
URLS: Final = {"sqlite": "sqlite:///jobs.db", "s3": "s3://bucket"}


def written(value: object) -> str:
    """A limit as people write it."""
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
        for unit, name in ((86400, "days"), (1, "s"), (0.001, "ms"), (0.000001, "µs")):
            if seconds >= unit:
                return f"{round(seconds / unit, 3):,g} {name}" if unit < 86400 else f"{round(seconds / unit):,} {name}"
    if isinstance(value, int) and value >= 1 << 20 and value % (1 << 20) == 0:
        return f"{value >> 20:,} MiB"
    return "none" if value is None else f"{value:,}"


def merged(data: Found, fresh: Found) -> Found:
    """What is known, with what is new over it, in the order of the tables."""
    return {
        str(table.kind): {
            column.name: fresh.get(str(table.kind), {}).get(column.name) or data["columns"][str(table.kind)][column.name]
            for column in table.columns
        }
        for table in TABLES
    }


def differences(data: Found, fresh: Found) -> Iterator[str]:
    """Where what is new is not what is known; versions of servers may be others."""
    for kind, columns in fresh.items():
        for name, found in columns.items():
            known = data["columns"].get(kind, {}).get(name, {})
            if found.get("capabilities") != known.get("capabilities"):
                yield f"{kind} {name}: capabilities {found.get('capabilities')}, not {known.get('capabilities')}"
            for test, outcome in found["outcomes"].items():
                if outcome != known.get("outcomes", {}).get(test):
                    yield f"{kind} {name}: {test} is {outcome}, not {known.get('outcomes', {}).get(test)}"


# -- data to the page --------------------------------------------------------------------------------------------------


def rendered(data: Found) -> str:
    """The part of the page that follows from the data."""
    return BEGIN + "".join(_sections(data))


def _sections(data: Found) -> Iterator[str]:
    yield f"\nThese are the findings with repid-core {data['version']} on Python {data['python']}, {data['system']}.\n"
    for table in TABLES:
        yield f"\n## {str(table.kind).capitalize()}s\n\n"
        yield from _summary(table, data["columns"][str(table.kind)])
        if table.kind is Kind.MESSAGE_BROKER:
            yield from _capabilities(table, data["columns"][str(table.kind)])
        if str(table.kind) in data["limits"]:
            yield from _limits(data["limits"][str(table.kind)])
        yield from _promises(table, data["columns"][str(table.kind)])


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _head(*cells: str) -> str:
    return _row(*cells) + "|" + "---|" * len(cells) + "\n"


def _summary(table: Table, columns: Mapping[str, Found]) -> Iterator[str]:
    others = [outcome for outcome in ("not declared", "deviating") if any(_count(found)[outcome] for found in columns.values())]
    yield _head("tested", "distribution", "against", "kept", *others)
    for column in table.columns:
        counts, found = _count(columns[column.name]), columns[column.name]
        against = found["on"] or "the process itself"
        numbers = (str(counts[outcome]) for outcome in ("kept", *others))
        yield _row(column.name, f"`{column.distribution}`", against, *numbers)


def _count(found: Found) -> Counter[str]:
    return Counter(outcome.partition(":")[0] for outcome in found["outcomes"].values())


def _capabilities(table: Table, columns: Mapping[str, Found]) -> Iterator[str]:
    yield "\n### Capabilities\n\nWhat each means is in [capabilities and limits](capabilities-and-limits.md#capabilities).\n\n"
    yield _head("capability", *(column.name for column in table.columns))
    for capability in Capability:
        cells = ("yes" if capability.name in columns[column.name]["capabilities"] else "–" for column in table.columns)
        yield _row(f"`{capability.name}`", *cells)


def _limits(limits: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    yield "\n### Limits\n\nWhat each declares with its default [settings](settings.md), some of which change them; "
    yield "[what they mean](capabilities-and-limits.md#limits).\n\n"
    yield _head("limit", *limits)
    for name in next(iter(limits.values())):
        yield _row(f"`{name}`", *(declared[name] for declared in limits.values()))


#: Why the suite cannot look, by the hook that its user could not write.
HOOKS: Final = {
    "break_connection": "there is no connection that the suite could cut",
    "count_stored": "the suite cannot count what the store holds",
    "kill_consumer": "there is no worker that the suite could kill",
}


def _why(reason: str) -> str:
    hook = re.match(r"hook (\w+), which", reason)
    return HOOKS[hook[1]] if hook else reason


def _promises(table: Table, columns: Mapping[str, Found]) -> Iterator[str]:
    yield "\n### Promises\n\n"
    yield _head("#", "promise", *(column.name for column in table.columns))
    reasons: dict[tuple[str, str], dict[str, None]] = {}  # with the columns, in their order
    for test, promise in table.promises():
        outcomes = [columns[column.name]["outcomes"][test].partition(": ") for column in table.columns]
        yield _row(promise.number, promise.text, *(MARKS[outcome] for outcome, _, _ in outcomes))
        for column, (_, found, reason) in zip(table.columns, outcomes, strict=True):
            if found:
                reasons.setdefault((promise.number, _why(reason)), {})[column.name] = None
    if reasons:
        yield "\nWhat is not declared, and why:\n\n"
    for (number, reason), names in reasons.items():
        yield f"- {number}, {'; '.join(names)}: {reason}\n"


# -- the command -------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Write data and page, or compare."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.matrix", description=__doc__)
    parser.add_argument("reports", nargs="*", type=Path, help="files of pytest's --conformance-report, by distribution")
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if the page does not say the same")
    options = parser.parse_args(arguments)
    fresh = found_in(options.reports)
    data = json.loads(DATA.read_text("utf-8")) if DATA.exists() else {"columns": {}}
    if options.check:
        wrong = list(differences(data, fresh))
        if limits() != data["limits"]:
            wrong.append(f"the limits are {limits()}")
        if wrong:
            again = f"python -m {__spec__.name if __spec__ else __name__} {' '.join(map(str, options.reports))}"
            raise SystemExit("\n".join((*wrong, f"the page of compatibility does not say so: run {again}")))
        return
    broken = [
        f"{kind} {name}: {test} is {outcome}"
        for kind, columns in fresh.items()
        for name, found in columns.items()
        for test, outcome in found["outcomes"].items()
        if outcome.startswith(("broken", "not run"))
    ]
    if broken:
        raise SystemExit("\n".join((*broken, "nothing was written: mend these, or run what was left out")))
    data = {
        "format": 1,
        "version": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} on {platform.machine()}",
        "limits": limits(),
        "columns": merged(data, fresh),
    }
    DATA.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", "utf-8")
    before = PAGE.read_text("utf-8").partition(BEGIN)[0]
    PAGE.write_text(before + rendered(data), "utf-8")


if __name__ == "__main__":
    main()
