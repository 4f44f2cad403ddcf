"""What the README says is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from repid_core.plugins import Kind, plugins

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


@pytest.mark.wheel
def test_the_program_runs() -> None:
    [program] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == re.findall(r"It prints `(.*?)`", README), done.stderr


def test_the_content_types_are_those_that_are_registered() -> None:
    for name in ("msgpack", "msgspec-json"):
        own, *others = (f"`{content_type}`" for content_type in plugins().backend(Kind.SERIALIZER, name).content_types)
        assert f"| `{name}` | {own} | {', '.join(others)}" in README
