"""The page of compatibility is what its data say, and the data know every promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import matrix
from tests.conformance.matrix import BEGIN, DATA, PAGE, TABLES, Table

KNOWN: dict[str, Any] = json.loads(DATA.read_text("utf-8"))
AGAIN = "run nox -s plugins, and python -m tests.conformance.matrix .nox/.cache/conformance/*.json"


def test_the_page_is_what_the_data_say() -> None:
    text = PAGE.read_text("utf-8")
    assert text[text.index(BEGIN) :] == matrix.rendered(KNOWN), "run python -m tests.conformance.matrix"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: str(table.kind))
def test_every_promise_was_looked_at(table: Table) -> None:
    columns = KNOWN["columns"][str(table.kind)]
    assert list(columns) == [column.name for column in table.columns]
    for name, found in columns.items():
        assert set(found["outcomes"]) == set(table.suite.promises()), f"{name}: {AGAIN}"
        assert not [outcome for outcome in found["outcomes"].values() if outcome.startswith(("broken", "not run"))]


def report(folder: Path, **changed: str) -> Path:
    """What a run of the suite for JSON would write, if it were as the page says, but for this."""
    [json_suite] = [column for table in TABLES for column in table.columns if column.name == "json"]
    outcomes = {**KNOWN["columns"]["serializer"]["json"]["outcomes"], **changed}
    promises = [
        {"test": test, "outcome": outcome.partition(": ")[0], "reason": outcome.partition(": ")[2]}
        for test, outcome in outcomes.items()
    ]
    path = folder / f"{json_suite.distribution}.json"
    path.write_text(json.dumps({"suites": [{"suite": f"tests/{json_suite.suite}", "promises": promises}]}), "utf-8")
    return path


def test_what_was_found_again_is_no_difference(tmp_path: Path) -> None:
    assert list(matrix.differences(KNOWN, matrix.found_in([report(tmp_path)]))) == []


def test_a_promise_that_is_no_longer_kept_is_a_difference(tmp_path: Path) -> None:
    fresh = matrix.found_in([report(tmp_path, test_plain_data="broken: it was lost")])
    [difference] = matrix.differences(KNOWN, fresh)
    assert difference.startswith("serializer json: test_plain_data is broken: it was lost, not kept")


def test_what_was_not_run_at_all_says_nothing(tmp_path: Path) -> None:
    nothing = dict.fromkeys(KNOWN["columns"]["serializer"]["json"]["outcomes"], "not run")
    assert matrix.found_in([report(tmp_path, **nothing)]) == {}


def test_a_suite_without_a_column_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "repid-acme.json"
    path.write_text(json.dumps({"suites": [{"suite": "tests/test_acme.py::TestAcme", "promises": []}]}), "utf-8")
    with pytest.raises(SystemExit, match="TestAcme of repid-acme has no column"):
        matrix.found_in([path])


def test_what_is_broken_is_not_written(tmp_path: Path) -> None:
    before = DATA.read_text("utf-8")
    with pytest.raises(SystemExit, match="nothing was written"):
        matrix.main([str(report(tmp_path, test_plain_data="broken: it was lost"))])
    assert DATA.read_text("utf-8") == before
