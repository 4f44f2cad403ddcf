"""The `repid` command: a group whose subcommands are imported when they are called.

`COMMANDS` is the table of core's own; plugins add theirs through `repid_register_commands`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import click

from repid_core import __version__
from repid_core.cli.group import LazyGroup

COMMANDS: Final[Mapping[str, str]] = {
    "worker": "repid_core.cli.worker:worker",
    "enqueue": "repid_core.cli.jobs:enqueue",
    "result": "repid_core.cli.jobs:result",
    "queues": "repid_core.cli.queues:queues",
    "stats": "repid_core.cli.queues:stats",
    "dead": "repid_core.cli.dead:dead",
    "plugins": "repid_core.cli.diagnosis:plugins",
    "check": "repid_core.cli.diagnosis:check",
    "plugin": "repid_core.cli.plugin:plugin",
}
"""Name to "module:attribute"; listed in this order."""


@click.group(
    cls=LazyGroup,
    commands_by_name=COMMANDS,
    with_plugins=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Each command has a --help with an example.",
)
@click.version_option(__version__, prog_name="repid")
def main() -> None:
    """Run workers, enqueue jobs, and see to the queues of an application."""
