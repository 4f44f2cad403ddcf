"""The suite's own machinery, as a plugin's author meets it: plain pytest, no conftest, pytest-asyncio in its strict mode."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from textwrap import dedent, indent
from typing import Any

import pytest

from repid_core.testing.conformance import BucketBrokerConformance, ConformanceSuite, MessageBrokerConformance, promise

pytest_plugins = ["pytester"]

HEAD = """
import pytest
from repid_core.abc import MessageBroker
from repid_core.memory import InMemoryMessageBroker
from repid_core.testing.clock import ManualClock
from repid_core.testing.conformance import MessageBrokerConformance

class Memory:
    in_process = "in memory"

    @pytest.fixture
    def make_broker(self):
        broker = self.broker_class()
        return lambda: broker

    broker_class = InMemoryMessageBroker

    def manual_clock(self):
        return ManualClock()

class Lossy(InMemoryMessageBroker):
    async def enqueue_many(self, envelopes):
        return await super().enqueue_many(envelopes[1:])
"""

Run = Callable[..., pytest.RunResult]


@pytest.fixture(autouse=True)
def strict(pytester: pytest.Pytester) -> None:
    """A stranger's pytest; without a plugin that is slow to import."""
    pytester.makeini("""
        [pytest]
        asyncio_mode = strict
        asyncio_default_fixture_loop_scope = function
        filterwarnings = error
        addopts = -p no:hypothesispytest
    """)


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Run pytest on `HEAD` and a suite with this body, as strangers do."""

    def run(
        body: str = "pass", *options: str, head: str = "", bases: str = "Memory, MessageBrokerConformance"
    ) -> pytest.RunResult:
        suite = f"class TestMine({bases}):\n{indent(dedent(body), '    ')}\n"
        pytester.makepyfile(test_mine=f"{HEAD}\n{dedent(head)}\n{suite}")
        return pytester.runpytest_inprocess(*options)

    return run


def summary(result: pytest.RunResult) -> str:
    """The line for the suite."""
    [line] = [line for line in result.outlines if line.startswith("test_mine.py::TestMine: ")]
    return line.removeprefix("test_mine.py::TestMine: ")


def report(result: pytest.RunResult, pytester: pytest.Pytester) -> dict[str, Any]:
    """The suite's part of the JSON report."""
    written = json.loads((pytester.path / "out" / "report.json").read_text("utf-8"))
    assert written["format"] == 1
    [suite] = written["suites"]
    assert suite["suite"] == "test_mine.py::TestMine"
    assert suite["summary"] == summary(result)
    assert isinstance(suite, dict)
    return suite


REPORT = "--conformance-report=out/report.json"


def test_a_conforming_broker(run: Run, pytester: pytest.Pytester) -> None:
    """Every promise is kept, or not declared with a reason, in the line and in the JSON; times are measured."""
    result = run("pass", REPORT)
    suite = report(result, pytester)
    promises = suite["promises"]
    kept = [promise for promise in promises if promise["outcome"] == "kept"]
    rest = [promise for promise in promises if promise["outcome"] == "not declared"]
    assert len(kept) + len(rest) == len(promises) == len(MessageBrokerConformance.promises())
    assert summary(result) == f"{len(kept)} promises kept, {len(rest)} not declared"
    result.assert_outcomes(passed=len(kept), skipped=len(rest))
    assert all(promise["reason"] for promise in rest)
    assert {promise["number"] for promise in rest} == {"M3", "M5", "M6", "M13", "M17", "M19", "M20"}
    measured = {name for promise in kept for name in promise["measured"]}
    assert {"lateness", "wake_up", "prefetch"} <= measured
    assert suite["backend"] == "InMemoryMessageBroker"
    assert suite["server"] == ""
    assert "ATOMIC_REQUEUE" in suite["capabilities"]
    assert suite["limits"]["lease"] == "15000.000 ms"


def test_a_broken_broker(run: Run, pytester: pytest.Pytester) -> None:
    """The failure names the promise, its text and what was seen; line and JSON count it."""
    result = run("broker_class = Lossy", REPORT, "-k", "enqueue_many_keeps_order or arrives_as_sent")
    result.assert_outcomes(passed=1, failed=1, deselected=len(MessageBrokerConformance.promises()) - 2)
    assert summary(result) == f"1 promise kept, 1 broken, {len(MessageBrokerConformance.promises()) - 2} not run"
    text = MessageBrokerConformance.promises()["test_enqueue_many_keeps_order"].text
    result.stdout.fnmatch_lines([f"*PromiseBroken: M18 is broken: {text}", "*Seen: outcomes: *", "*- Promise -*", f"M18: {text}"])
    suite = report(result, pytester)
    [broken] = [promise for promise in suite["promises"] if promise["outcome"] == "broken"]
    assert (broken["number"], broken["text"]) == ("M18", text)
    assert "Seen: outcomes" in broken["reason"]


@pytest.mark.parametrize(
    ("body", "head", "bases", "says"),
    [
        pytest.param("test_wake_up = None", "", "Memory, MessageBrokerConformance", "drops", id="dropped"),
        pytest.param("async def test_wake_up(self): pass", "", "Memory, MessageBrokerConformance", "overrides", id="overridden"),
        pytest.param(
            "pass",
            "class Mixin:\n    async def test_wake_up(self): pass",
            "Memory, Mixin, MessageBrokerConformance",
            "overrides",
            id="overridden by a mixin",
        ),
    ],
)
def test_no_change_without_a_reason(run: Run, body: str, head: str, bases: str, says: str) -> None:
    """Overriding or dropping a standard test fails, and says what to write."""
    result = run(body, head=head, bases=bases)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"*TestMine {says} test_wake_up, the test of M11, and does not say why: add deviations = *"])


@pytest.mark.parametrize("change", ["TestMine.test_wake_up = None", "TestMine.deviations = {'test_wake_up': ''}"])
def test_no_change_behind_its_back(run: Run, pytester: pytest.Pytester, change: str) -> None:
    """A test dropped after the class was made, or a reason taken back, fails too."""
    run("pass", "--collect-only", "-q")
    with (pytester.path / "test_mine.py").open("a") as file:
        file.write(f"\n{change}\n")
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*gives no reason for 'test_wake_up'*" if "deviations" in change else "*drops test_wake_up*"])


def test_changes_with_a_reason_are_reported(run: Run, pytester: pytest.Pytester) -> None:
    """Dropped, overridden or merely named: each counts as deviating, with its reason; a replacement that fails is broken."""
    body = """
        deviations = {"test_ping": "dropped", "test_stats": "not run", "test_wake_up": "own", "test_ack_removes": "own, broken"}
        test_ping = None
        async def test_wake_up(self): pass
        async def test_ack_removes(self): raise ValueError("own test")
    """
    head = "pytestmark = pytest.mark.asyncio"  # what promise() does for the standard tests
    result = run(body, REPORT, "-rs", "-k", "ping or stats or wake_up or ack_removes or arrives_as_sent", head=head)
    result.assert_outcomes(passed=2, failed=1, skipped=1, deselected=len(MessageBrokerConformance.promises()) - 5)
    not_run = len(MessageBrokerConformance.promises()) - 5
    assert summary(result) == f"1 promise kept, 1 broken, 3 deviating, {not_run} not run"
    found = {promise["test"]: promise for promise in report(result, pytester)["promises"]}
    assert [found[name]["reason"] for name in ("test_ping", "test_stats", "test_wake_up")] == ["dropped", "not run", "own"]
    assert "own test" in found["test_ack_removes"]["reason"]
    result.stdout.fnmatch_lines(["*deviates: not run*"])


@pytest.mark.parametrize(
    ("deviations", "says"),
    [({"test_nothing_like_it": "why"}, "no standard test"), ({"test_wake_up": "  "}, "no reason")],
)
def test_deviations_must_make_sense(deviations: dict[str, str], says: str) -> None:
    """A reason for no test, and no reason for a test, are errors when the class is made."""
    with pytest.raises(TypeError, match=says):
        type("TestMine", (MessageBrokerConformance,), {"deviations": deviations})


def test_own_tests_and_helpers_are_free() -> None:
    """A subclass may add tests, promised or not, and hooks."""

    class TestMine(BucketBrokerConformance):
        @promise("X1", "It has a test of its own.")
        async def test_mine(self) -> None: ...

        def manual_clock(self) -> None: ...

    assert TestMine.promises().keys() - BucketBrokerConformance.promises().keys() == {"test_mine"}
    assert TestMine.test_mine.__doc__ == "X1: It has a test of its own."


def test_nothing_declared(run: Run, pytester: pytest.Pytester) -> None:
    """With no capability, what needs one is not declared, by its name; the rest is kept; asking for one raises."""
    head = """
        class Bare(InMemoryMessageBroker):
            capabilities = frozenset()
            cancel, browse = MessageBroker.cancel, MessageBroker.browse
    """
    result = run("broker_class = Bare", REPORT, head=head)
    found = {promise["test"]: promise for promise in report(result, pytester)["promises"]}
    for name, expected in MessageBrokerConformance.promises().items():
        if expected.needs:
            assert found[name]["outcome"] == "not declared", name
            assert any(getattr(need, "name", need) in found[name]["reason"] for need in expected.needs)
    assert {promise["outcome"] for promise in found.values()} == {"kept", "not declared"}
    assert {found[name]["outcome"] for name in ("test_cancel_unsupported", "test_browse_unsupported")} == {"kept"}


def test_a_test_that_is_run_once_more_counts_as_it_ends(run: Run) -> None:
    """Who has failing tests run again gets the last word of each; CI names them all the same."""
    pytest.importorskip("pytest_rerunfailures")
    head = """
        class Flaky(InMemoryMessageBroker):
            seen = []

            async def ping(self):
                if not self.seen:
                    self.seen.append("once")
                    raise OSError("once")
    """
    result = run("broker_class = Flaky", "-k", "test_ping", "--reruns", "1", head=head)
    assert summary(result) == f"1 promise kept, {len(MessageBrokerConformance.promises()) - 1} not run"


def test_what_is_not_run_is_said(run: Run) -> None:
    """Deselecting tests, or skipping them from outside, does not make a suite look whole."""
    total = len(MessageBrokerConformance.promises())
    assert summary(run("pass", "-k", "test_ping")) == f"1 promise kept, {total - 1} not run"
    head = "@pytest.fixture(autouse=True)\ndef skip_all(): pytest.skip('not today')"
    assert summary(run("pass", "-k", "test_ping", head=head)) == f"0 promises kept, {total} not run"


def test_a_broker_that_does_not_connect_breaks_promises(run: Run) -> None:
    """An error in setup counts as broken."""
    head = """
        class Offline(InMemoryMessageBroker):
            async def connect(self): raise OSError("no route")
    """
    result = run("broker_class = Offline", "-k", "test_ping", head=head)
    result.assert_outcomes(errors=1, deselected=len(MessageBrokerConformance.promises()) - 1)
    assert summary(result).startswith("0 promises kept, 1 broken")


def test_the_fixture_is_asked_for(run: Run) -> None:
    """Without make_broker the failure says what to write."""
    result = run("pass", "-k", "test_ping", bases="MessageBrokerConformance")
    result.stdout.fnmatch_lines(["*TestMine needs a fixture make_broker*"])


def test_nothing_is_printed_without_suites(pytester: pytest.Pytester) -> None:
    """In other projects the plugin is silent; a report that was asked for is empty."""
    pytester.makepyfile(test_other="def test_it(): pass")
    result = pytester.runpytest_inprocess(REPORT)
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*conformance*")
    assert json.loads((pytester.path / "out" / "report.json").read_text("utf-8")) == {"format": 1, "suites": []}


def test_the_plugin_imports_no_suite() -> None:
    """Every project that has core installed loads it: it must cost nothing."""
    code = (
        "import repid_core, sys; before = set(sys.modules); import repid_core.testing.conformance.plugin;"
        "print([m for m in sys.modules.keys() - before if m.startswith(('repid_core', 'pytest_asyncio'))])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(json.loads(found.replace("'", '"'))) <= {
        "repid_core.testing",
        "repid_core.testing.conformance",
        "repid_core.testing.conformance.plugin",
    }


@pytest.mark.parametrize(
    ("suite", "numbers"),
    [
        (MessageBrokerConformance, [f"M{n}" for n in range(1, 21)]),
        (BucketBrokerConformance, ["B1", "B2", "B3", "B4", "B5", "B6", "B8"]),
    ],
)
def test_every_promise_has_a_test(suite: type[ConformanceSuite], numbers: list[str]) -> None:
    """Each number of the contract that a broker alone can keep is checked, and each test's docstring is its promise."""
    assert set(numbers) <= {promise.number for promise in suite.promises().values()}
    for name, kept in suite.promises().items():
        assert getattr(suite, name).__doc__ == f"{kept.number}: {kept.text}"
        assert kept.text.endswith("."), name
