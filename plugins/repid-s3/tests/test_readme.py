"""What the README says is so."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from attrs import fields

from repid_s3 import S3BucketBrokerSettings

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_the_table_is_that_of_the_settings() -> None:
    text = inspect.getdoc(S3BucketBrokerSettings) or ""
    block = text.split("Attributes:\n", 1)[1].split("\n\n", 1)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", block, re.MULTILINE)
    rows = [f"| `{name}` | {' '.join(said.split())} |" for name, said in entries]
    assert [name for name, _ in entries] == [field.name for field in fields(S3BucketBrokerSettings)]
    table = "\n".join(["| setting | what it is |", "|---|---|", *rows])
    assert table in README, f"put this into the README:\n{table}"


def test_the_arithmetic_of_costs() -> None:
    rows = re.findall(r"\| ([\d,.×/⁹ ]+) \| ([\d.]+) \|", README)
    assert len(rows) == 7
    for said, result in rows:
        value = Fraction(1)
        for sign, number in re.findall(r"(^|[×/]) ?([\d,.]+⁹?)", said):
            factor = Fraction(10**9) if number == "10⁹" else Fraction(number.replace(",", ""))
            value = value / factor if sign == "/" else value * factor
        assert f"{float(value):.2f}" == result, said


def test_how_often_it_is_looked() -> None:
    [said] = re.findall(r"(\d+) if it is there, about (\d+) for a second, (\d+) for ten, (\d+) for a minute", README)
    settings = S3BucketBrokerSettings("s3://bucket")
    for seconds, looks in zip((0, 1, 10, 60), map(int, said), strict=True):
        passed, pause, counted = 0.0, settings.poll_first, 1
        while passed < seconds:
            passed += pause.total_seconds()
            pause = min(pause * settings.poll_factor, settings.poll_longest)
            counted += 1
        assert counted == looks, (seconds, counted)


@pytest.mark.wheel
def test_the_program_runs(client: Any, place: str) -> None:
    [program] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    program = program.replace("s3://my-bucket/my-app/", place)
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "an-access-key",
        "AWS_SECRET_ACCESS_KEY": "a-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert done.stdout.splitlines() == re.findall(r"It prints `(.*?)`", README), done.stderr
    assert client.list_objects_v2(Bucket=place.split("/")[2])["KeyCount"] == 1
