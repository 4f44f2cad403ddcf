"""The tests on the page about testing, and in the README, are written to files, with the names that they have there, and run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.examples

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "test-your-application.md"
FENCE = re.compile(r"(?ms)^```(\w+)\n(.*?)^```$")
BLOCKS = FENCE.findall(PAGE.read_text("utf-8"))
FILES = {code.split("\n")[0].removeprefix("# "): code for language, code in BLOCKS if code.startswith("# ")}
TEXTS = [code for language, code in BLOCKS if language == "text"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, code in FILES.items():
        (tmp_path / name).write_text(code, "utf-8")
    return tmp_path


def run(project: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", *args],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_all_blocks_are_files_or_programs() -> None:
    """Programs are for test_docs.py."""
    assert len([name for name in FILES if name.startswith("test_")]) == 5
    assert {"shop.py", "conftest.py", "pyproject.toml", "example_that_fails.py"} <= set(FILES)


def test_the_tests_pass(project: Path) -> None:
    done = run(project, "-q")
    assert done.returncode == 0, done.stdout
    tests = sum(code.count("async def test_") for name, code in FILES.items() if name.startswith("test_"))
    assert f"{tests} passed" in done.stdout


def test_the_failure_says_what_the_page_shows(project: Path) -> None:
    done = run(project, "-q", "example_that_fails.py")
    assert done.returncode == 1, done.stdout
    assert "".join(re.findall(r"(?m)^E .*\n", done.stdout)) == TEXTS[0]


def test_the_log_looks_as_the_page_shows(project: Path) -> None:
    (project / "test_log.py").write_text(
        "from shop import *\n\n"
        "import pytest\n"
        "from datetime import UTC, datetime\n\n"
        "@pytest.mark.repid(start=datetime(2030, 1, 1, 12, tzinfo=UTC))\n"
        "async def test_log(repid):\n"
        "    await Job.of(send_mail, retries=2)(to='kim@example.com', text='hello').enqueue()\n"
        "    await repid.run_until_idle()\n"
        f"    assert str(repid.events) + '\\n' == {TEXTS[1]!r}\n",
        "utf-8",
    )
    done = run(project, "-q", "test_log.py")
    assert done.returncode == 0, done.stdout


def test_the_test_in_the_readme_passes(tmp_path: Path) -> None:
    """By itself, with pytest-asyncio as it is without any configuration."""
    blocks = FENCE.findall((PAGE.parents[2] / "README.md").read_text("utf-8"))
    [code] = [code for _, code in blocks if code.startswith("# test_")]
    (tmp_path / "test_reminders.py").write_text(code, "utf-8")
    done = run(tmp_path, "-q", "-o", "asyncio_default_fixture_loop_scope=function")
    assert "1 passed" in done.stdout, done.stdout
