"""What the README says is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


@pytest.mark.wheel
def test_the_program_runs() -> None:
    [program] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    [printed] = re.findall(r"```text\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == printed, done.stderr


def test_pydantic_waits_until_it_is_wanted() -> None:
    program = (
        "import sys, repid_pydantic; repid_pydantic.repid_register_converters(); assert 'pydantic' not in sys.modules; "
        "from repid_pydantic import PydanticConverter; assert 'pydantic' in sys.modules; assert not hasattr(repid_pydantic, 'x')"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)
