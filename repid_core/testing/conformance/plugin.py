"""The pytest plugin that reports what the suites found: one line for each, and JSON on request.

pytest loads it by core's entry point in every project that has core installed; without suites it does nothing.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from repid_core.testing.conformance.suite import ConformanceSuite

_SUITE = "repid_core.testing.conformance.suite"
_PROPERTY = "repid_conformance"
_WORST = ("broken", "not run", "deviating", "not declared", "kept")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for the JSON report."""
    parser.getgroup("repid").addoption(
        "--conformance-report",
        metavar="PATH",
        type=Path,
        help="write what the repid conformance suites found to PATH, as JSON",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Collect the findings of this run."""
    config.pluginmanager.register(_Report(config), "repid-conformance-report")


def _suite(cls: Any) -> type[ConformanceSuite] | None:
    """The class, if it is a suite. The suites' module is not imported for it: where there are suites, it is."""
    module = sys.modules.get(_SUITE)
    return cls if module and isinstance(cls, type) and issubclass(cls, module.ConformanceSuite) else None


def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: object) -> None:
    """Refuse a suite whose tests were changed after its class was made."""
    suite = _suite(obj)
    if suite is not None and name.startswith("Test") and (problems := suite.undeclared_changes()):
        raise collector.CollectError("\n".join(problems))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say in each test's report which promise it is about; a failed one says so aloud."""
    report = yield
    suite = _suite(getattr(item, "cls", None))
    if suite is None:
        return report
    name = getattr(item, "originalname", None) or item.name
    promise = suite.promises().get(name)
    if promise is None:
        return report
    if report.failed:
        report.sections.append(("Promise", f"{promise.number}: {promise.text}"))
    reason = str(getattr(call.excinfo.value, "msg", "")) if call.excinfo and report.skipped else ""
    outcome = _outcome(report, reason, deviates=name in suite.deviations)
    if outcome is not None:
        instance: Any = getattr(item, "instance", None)
        finding = {
            "suite": f"{item.nodeid.split('::', 1)[0]}::{suite.__name__}",
            "test": name,
            "outcome": outcome,
            "reason": str(call.excinfo.value) if call.excinfo and report.failed else reason.removeprefix("not declared: "),
            "measured": dict(instance.measured) if instance is not None else {},
            "about": _about(instance) if report.when == "call" else {},
            "promises": {test: [p.number, p.text] for test, p in suite.promises().items()},
            "deviations": dict(suite.deviations),
        }
        report.user_properties.append((_PROPERTY, finding))
    return report


def _outcome(report: pytest.TestReport, reason: str, *, deviates: bool) -> str | None:
    """What a phase of a test says of its promise; None if nothing."""
    if report.failed:
        return "broken"
    if report.skipped:
        return "not declared" if reason.startswith("not declared: ") else "deviating" if deviates else "not run"
    if report.when != "call":
        return None
    return "deviating" if deviates else "kept"


def _about(instance: Any) -> dict[str, Any]:
    try:
        return dict(instance.describe())
    except Exception as error:  # noqa: BLE001 — a broken backend must not break the report about it
        return {"error": repr(error)}


class _Report:
    """The findings of a run, by suite; under pytest-xdist they come from its workers."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.suites: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the finding of a test's phase; the worst of them counts, and of several runs of one test.

        Where pytest-rerunfailures runs a test once more, as somebody asked it to, the last run counts.
        """
        if report.outcome == "rerun":  # type: ignore[comparison-overlap]
            return
        properties: list[tuple[str, Any]] = report.user_properties
        for finding in (value for name, value in properties if name == _PROPERTY):
            suite = self.suites.setdefault(finding["suite"], {"about": {}, "promises": _expected(finding)})
            suite["about"] = finding["about"] or suite["about"]
            kept = suite["promises"][finding["test"]]
            if kept["outcome"] == "not run" or _WORST.index(finding["outcome"]) < _WORST.index(kept["outcome"]):
                reason = kept["reason"] if finding["outcome"] == "deviating" else finding["reason"]
                kept.update(outcome=finding["outcome"], reason=reason)
            kept["measured"].update(finding["measured"])

    def reported(self) -> dict[str, dict[str, Any]]:
        """What is known of each suite: summary, what is tested, and every promise with its outcome; JSON-able."""
        return {
            name: {"summary": _summary(suite), **suite["about"], "promises": list(suite["promises"].values())}
            for name, suite in self.suites.items()
        }

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print a line for each suite."""
        if self.suites:
            terminalreporter.section("repid conformance")
        for name, suite in self.suites.items():
            terminalreporter.line(f"{name}: {_summary(suite)}")

    def pytest_sessionfinish(self) -> None:
        """Write the JSON report."""
        path: Path | None = self.config.getoption("--conformance-report")
        if path is not None and not hasattr(self.config, "workerinput"):
            suites = [{"suite": name, **suite} for name, suite in self.reported().items()]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"format": 1, "suites": suites}, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _expected(finding: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every promise of a suite, not run yet; those that deviate, and have no test, are found at once."""
    deviations = finding["deviations"]
    return {
        test: {
            "number": number,
            "text": text,
            "test": test,
            "outcome": "deviating" if test in deviations else "not run",
            "reason": deviations.get(test, ""),
            "measured": {},
        }
        for test, (number, text) in finding["promises"].items()
    }


def _summary(suite: dict[str, Any]) -> str:
    counts = Counter(promise["outcome"] for promise in suite["promises"].values())
    found = [f"{counts[outcome]} {outcome}" for outcome in ("not declared", "broken", "deviating", "not run") if counts[outcome]]
    return ", ".join([f"{counts['kept']} promise{'s' * (counts['kept'] != 1)} kept", *found])
