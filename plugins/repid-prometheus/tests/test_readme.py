"""What the README says is so."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import fields

from repid_prometheus import PrometheusSettings

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_the_table_is_that_of_the_settings() -> None:
    text = inspect.getdoc(PrometheusSettings) or ""
    block = text.split("Attributes:\n", 1)[1].split("\n\n", 1)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", block, re.MULTILINE)
    rows = [f"| `{name}` | {' '.join(said.split())} |" for name, said in entries]
    assert [name for name, _ in entries] == [field.name for field in fields(PrometheusSettings)]
    table = "\n".join(["| setting | what it is |", "|---|---|", *rows])
    assert table in README, f"put this into the README:\n{table}"


@pytest.mark.wheel
def test_the_program_runs() -> None:
    [(program, printed)] = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)
    environment = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert done.stdout == printed, done.stderr
