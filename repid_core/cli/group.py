"""Commands and groups: found by name and imported when they are needed, with examples, and with errors that people can read."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping, Sequence
from pkgutil import resolve_name
from typing import Any, Final, NoReturn

import click

from repid_core.errors import ConfigError, RepidError, UsageError
from repid_core.plugins import plugins

DONE: Final = 0
PROBLEM: Final = 1  #: what was asked for was not done, or a problem was found
USAGE: Final = 2  #: the command line or the configuration is wrong, so nothing was done
NOTHING: Final = 3  #: there is no such thing, or not yet
INTERRUPTED: Final = 130  #: by Ctrl-C, as shells say it

_DEBUG: Final = "repid_core.cli.debug"


class Failure(click.ClickException):
    """What a command ends with that has not done what was asked for; the message is all that is shown.

    Args:
        message: What, why, and what to do.
        status: The exit status.
    """

    def __init__(self, message: str, status: int = PROBLEM) -> None:
        super().__init__(message)
        self.status = status

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        """The exit status."""
        return self.status


class Command(click.Command):
    """A command with examples.

    Args:
        examples: Command lines, as they are typed.
        shape: What `--json` prints: the keys, and the types in words.
        arguments: As `click.Command`.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), shape: Any = None, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.examples, self.shape = tuple(examples), shape
        self.params.append(debug_option())

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")
        super().format_epilog(ctx, formatter)


def debug_option() -> click.Option:
    """`--debug`, which is heeded wherever it stands."""

    def heed(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            ctx.find_root().meta[_DEBUG] = True

    return click.Option(
        ["--debug"], is_flag=True, expose_value=False, callback=heed, help="Show the traceback of an error.", envvar="REPID_DEBUG"
    )


class LazyGroup(click.Group):
    """A group with a table of its subcommands.

    Args:
        commands_by_name: Name to "module:attribute".
        with_plugins: Whether those that plugins add are in it too.
        arguments: As `click.Group`.
    """

    def __init__(self, *args: Any, commands_by_name: Mapping[str, str], with_plugins: bool = False, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self._table, self._with_plugins = commands_by_name, with_plugins
        self._added: dict[str, click.Command] | None = None  # by plugins
        self.params.append(debug_option())

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._table, *sorted({*self.commands, *self._of_plugins()} - set(self._table))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if (target := self._table.get(cmd_name)) is not None:
            command: click.Command = resolve_name(target)
            return command
        return super().get_command(ctx, cmd_name) or self._of_plugins().get(cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.parent is not None:
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except (RepidError, Failure, KeyboardInterrupt) as error:
            if ctx.meta.get(_DEBUG):
                traceback.print_exception(error)
            explain(error)

    def _of_plugins(self) -> dict[str, click.Command]:
        """The commands that plugins add. One that is broken adds none; `repid plugins` says why."""
        if self._added is None:
            self._added = {}
            if not self._with_plugins:
                return self._added
            for command in plugins().commands():
                if command.name:
                    self._added.setdefault(command.name, command)
        return self._added


def explain(error: BaseException) -> NoReturn:
    """End the command with an error's message and its status, and without a traceback."""
    if isinstance(error, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(INTERRUPTED)
    if isinstance(error, Failure):
        raise error
    raise Failure(str(error), USAGE if isinstance(error, ConfigError | UsageError) else PROBLEM) from error
