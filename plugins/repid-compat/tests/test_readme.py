"""What the README says is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import repid

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


@pytest.mark.wheel
def test_the_program_runs() -> None:
    [program] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == re.findall(r"It prints `(.*?)`", README), done.stderr


def test_the_error_is_the_one_that_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "repid_redis", None)
    with pytest.raises(ImportError) as caught:
        repid.RedisMessageBroker  # noqa: B018 — it is imported when it is asked for
    assert f"ImportError: {caught.value}\n" in README
