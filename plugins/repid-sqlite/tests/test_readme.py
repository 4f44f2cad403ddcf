"""What the README says is so."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import fields

from repid_sqlite import SqliteBucketBrokerSettings, SqliteMessageBrokerSettings

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def table(settings: type) -> str:
    """The docstring's fields as a table, in their order."""
    text = inspect.getdoc(settings) or ""
    block = text.split("Attributes:\n", 1)[1].split("\n\n", 1)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", block, re.MULTILINE)
    rows = [f"| `{name}` | {' '.join(said.split())} |" for name, said in entries]
    assert [name for name, _ in entries] == [field.name for field in fields(settings)]
    return "\n".join(["| setting | what it is |", "|---|---|", *rows])


@pytest.mark.parametrize("settings", [SqliteMessageBrokerSettings, SqliteBucketBrokerSettings])
def test_the_tables_are_those_of_the_settings(settings: type) -> None:
    assert table(settings) in README, f"put this into the README:\n{table(settings)}"


@pytest.mark.wheel
def test_the_program_runs(tmp_path: Path) -> None:
    [program] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == re.findall(r"It prints `(.*?)`", README), done.stderr
    assert done.stderr == ""
    assert [file.name for file in tmp_path.iterdir()] == ["jobs.db"]
