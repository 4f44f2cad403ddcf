"""A group whose subcommands are found by name, and imported when they are needed."""

from __future__ import annotations

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any

import click

from repid_core.plugins import plugins


class LazyGroup(click.Group):
    """A group with a table of its subcommands, and those of the plugins where it is the outermost.

    Args:
        commands_by_name: Name to "module:attribute".
        arguments: As `click.Group`.
    """

    def __init__(self, *args: Any, commands_by_name: Mapping[str, str], **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self._table = commands_by_name
        self._added: dict[str, click.Command] | None = None  # by plugins

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._table, *sorted({*self.commands, *self._of_plugins(ctx)} - set(self._table))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if (target := self._table.get(cmd_name)) is not None:
            command: click.Command = resolve_name(target)
            return command
        return super().get_command(ctx, cmd_name) or self._of_plugins(ctx).get(cmd_name)

    def _of_plugins(self, ctx: click.Context) -> dict[str, click.Command]:
        """The commands that plugins add. One that is broken adds none; `repid plugins` says why."""
        if ctx.parent is not None:
            return {}
        if self._added is None:
            self._added = {}
            for command in plugins().commands():
                if command.name:
                    self._added.setdefault(command.name, command)
        return self._added
