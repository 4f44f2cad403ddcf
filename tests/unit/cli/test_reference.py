"""The reference of the command follows from its commands, and command lines in the documentation parse.

`python tests/unit/cli/test_reference.py` writes the reference.
"""

from __future__ import annotations

import inspect
import json
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest

from repid_core.cli import COMMANDS, main
from repid_core.cli.group import Command

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "reference" / "cli.md"
BEGIN = "<!-- What follows is written by tests/unit/cli/test_reference.py. -->\n"


def commands(group: click.Group = main, *before: str) -> Iterator[tuple[str, Command]]:
    """Core's own, by their whole names."""
    context = click.Context(group, info_name="repid")
    for name in COMMANDS if group is main else group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, *before, name)
        else:
            assert isinstance(command, Command), f"{name} has no examples"
            yield " ".join((*before, name)), command


def rendered() -> str:
    """The part of the page that follows from the commands."""
    parts = [BEGIN]
    for name, command in commands():
        arguments = " ".join(str(p.metavar or str(p.name).upper()) for p in command.params if isinstance(p, click.Argument))
        parts.append(f"\n## repid {name}\n\n")
        parts.append(f"`repid {name} {'[OPTIONS] ' + arguments}".rstrip() + "`\n\n")
        parts.append(re.sub(r"--[a-z-]+", r"`\g<0>`", inspect.cleandoc(command.help or "")) + "\n\n")
        parts += ["| option | what it does |\n|---|---|\n", *map(row, options(command))]
        parts.append("\n```console\n" + "".join(f"$ {example}\n" for example in command.examples) + "```\n")
        if command.shape is not None:
            shape, many = command.shape, isinstance(command.shape, list) and name.startswith("dead ")
            what = "`--json`, an object on each line:" if many else "`--json`:"
            text = json.dumps(shape[0] if many else shape, indent=2)
            parts.append(f"\n{what}\n\n```json\n{text}\n```\n")
    return "".join(parts)


def options(command: click.Command) -> list[click.Option]:
    return [p for p in command.params if isinstance(p, click.Option) and not p.hidden]


def row(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len, reverse=True))
    kind = "" if option.is_flag else f" {value_of(option)}"
    words = [option.help or "", "" if option.envvar is None else f"Environment: `{option.envvar}`.", default_of(option)]
    return f"| {names}{kind} | {' '.join(filter(None, words))} |\n".replace("  [default", " [default")


def value_of(option: click.Option) -> str:
    if isinstance(option.type, click.Choice):
        return ", ".join(f"`{choice}`" for choice in option.type.choices)
    return str(option.metavar or {"integer range": "N", "path": "FILE"}.get(option.type.name, option.type.name)).upper()


def default_of(option: click.Option) -> str:
    return f"Default: {option.default}." if option.show_default else ""


def test_the_reference_is_what_the_commands_say() -> None:
    text = PAGE.read_text("utf-8")
    assert text[text.index(BEGIN) :] == rendered(), f"run python {Path(__file__).relative_to(ROOT)}"


def test_every_command_has_an_example_and_every_option_is_explained() -> None:
    for name, command in commands():
        assert command.examples, name
        assert all(example.startswith(f"repid {name}") for example in command.examples), name
        assert command.help, name
        assert [option.name for option in options(command) if not option.help] == [], name


def written() -> list[Any]:
    """Command lines in the documentation and in the examples of the commands."""
    found = [example for _, command in commands() for example in command.examples]
    for page in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")):
        found += re.findall(r"^\$ (repid .*)$", page.read_text("utf-8"), re.MULTILINE)
    return sorted(set(found))


@pytest.mark.parametrize("line", written())
def test_command_lines_parse(line: str) -> None:
    words = shlex.split(line.partition(" | ")[0].partition(" &")[0])[1:]
    if (ROOT / "plugins" / f"repid-{words[0]}").exists() and find_spec(f"repid_{words[0]}") is None:
        pytest.skip(f"a command of repid-{words[0]}, which is not installed")
    command: click.Command = main
    parent = click.Context(main, info_name="repid")
    while isinstance(command, click.Group):
        found = command.get_command(parent, words[0])
        assert found is not None, f"there is no {words[0]!r}"
        command = found
        if words[0] in ("--help", "--version"):
            return
        words.pop(0)
    with command.make_context("repid", words, parent=parent):
        pass


if __name__ == "__main__":
    before = PAGE.read_text("utf-8").partition(BEGIN)[0]
    PAGE.write_text(before + rendered(), "utf-8")
