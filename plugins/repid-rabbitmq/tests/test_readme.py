"""The README says what is true: its program runs, and its table is that of the settings class."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

from attrs import fields

from repid_core.data import Priority
from repid_rabbitmq import RabbitMessageBrokerSettings
from repid_rabbitmq.topology import Topology, _bits
from servers import Node

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_the_table_is_that_of_the_settings() -> None:
    text = inspect.getdoc(RabbitMessageBrokerSettings) or ""
    block = text.split("Attributes:\n", 1)[1].split("\n\n", 1)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", block, re.MULTILINE)
    rows = [f"| `{name}` | {' '.join(said.split())} |" for name, said in entries]
    assert [name for name, _ in entries] == [field.name for field in fields(RabbitMessageBrokerSettings)]
    table = "\n".join(["| setting | what it is |", "|---|---|", *rows])
    assert table in README, f"put this into the README:\n{table}"


def test_the_program_runs(node: Node) -> None:
    [program] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    program = program.replace("amqp://guest:guest@localhost:5672/", node.url)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == re.findall(r"It prints `(.*?)`", README)


def test_the_way_of_a_delayed_message_is_as_described() -> None:
    exchange, key = re.findall(r"`(repid\.v1:mail:bits:\d\d)` and\n`([01.]+m)`", README)[0]
    names = Topology(RabbitMessageBrokerSettings()).names("mail")
    assert (exchange, key) == (names.exchange((5).bit_length()), _bits(5, Priority.MEDIUM))
