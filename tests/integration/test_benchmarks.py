"""The benchmarks run: with few jobs, and this Python alone."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.examples

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(120)
@pytest.mark.skipif(not (ROOT / "benchmarks").exists(), reason="the source tree is out of the way")
@pytest.mark.skipif(importlib.util.find_spec("repid_redis") is None, reason="repid-redis is not installed here")
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="there is no redis-server here")
def test_brokers_side_by_side() -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.brokers",
        "redis",
        "--peer",
        "raw",
        "--rounds",
        "1",
        "--jobs",
        "200",
        "--latencies",
        "5",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ") and "repid" not in line]
    assert len(rows) == 14
    assert all(row.split("|")[2].strip() not in {"", "–"} for row in rows), done.stdout
