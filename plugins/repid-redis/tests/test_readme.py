"""The README says what is true: its program runs, and its tables are those of the settings classes."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import fields

from repid_redis import RedisBucketBrokerSettings, RedisMessageBrokerSettings
from repid_redis.errors import RIGHTS
from repid_redis.settings import RedisSettings

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def table(kind: type) -> str:
    """The settings of a class that its base does not have, from its docstring."""
    text = inspect.getdoc(kind) or ""
    block = text.split("Attributes:\n", 1)[1].split("\n\n", 1)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", block, re.MULTILINE)
    own = {field.name for field in fields(kind)} - (
        {field.name for field in fields(kind.__mro__[1])} if kind is not RedisSettings else set()
    )
    rows = [f"| `{name}` | {' '.join(said.split()).replace('|', chr(92) + '|')} |" for name, said in entries if name in own]
    assert len(rows) == len(own), "a setting lacks its line in the docstring"
    return "\n".join(["| setting | what it is |", "|---|---|", *rows])


@pytest.mark.parametrize("kind", [RedisSettings, RedisMessageBrokerSettings, RedisBucketBrokerSettings])
def test_the_tables_are_those_of_the_settings(kind: type) -> None:
    assert table(kind) in README, f"put this into the README:\n{table(kind)}"


@pytest.mark.wheel
def test_the_program_runs(redis_url: str) -> None:
    [program] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    program = program.replace("redis://localhost:6379/0", redis_url)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    said = re.findall(r"It prints `(.*?)`", README)
    assert done.stdout.splitlines() == said


def test_the_rights_are_those_that_errors_name() -> None:
    assert f"`{RIGHTS.replace('PREFIX', 'repid')}`" in README
