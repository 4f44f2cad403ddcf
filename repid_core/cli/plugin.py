"""`repid plugin`: from an empty folder to a plugin that keeps the contract."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import click

from repid_core.cli import plugin_report, plugin_target, scaffold
from repid_core.cli.group import PROBLEM, USAGE, Command, Failure
from repid_core.cli.options import json_option
from repid_core.plugins import Kind
from repid_core.settings import keys_of


@click.group("plugin", short_help="Write a plugin, and prove that it keeps the contract.")
def plugin() -> None:
    """Write a plugin, and prove that it keeps the contract."""


@plugin.command(
    "new",
    cls=Command,
    short_help="Write the package of a new plugin.",
    examples=[
        "repid plugin new repid-acme --kind message-broker,bucket-broker --install",
        "repid plugin new repid-toml --kind serializer --license Apache-2.0 --author 'Ada Byron' --directory ~/src",
    ],
)
@click.argument("name")
@click.option(
    "--kind",
    "kinds",
    required=True,
    multiple=True,
    metavar="KIND[,KIND…]",
    help=f"What it brings: {', '.join(scaffold.KINDS)}; several with commas, or with several --kind.",
)
@click.option("--license", "license_", default="MIT", show_default=True, metavar="ID", help=", ".join(scaffold.LICENSES) + ".")
@click.option("--author", metavar="TEXT", help="Who holds the copyright.  [default: The NAME authors]")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Where the new folder goes.  [default: here]",
)
@click.option("--install", is_flag=True, help="Install it into this environment too: pip install -e.")
def new(name: str, kinds: tuple[str, ...], license_: str, author: str | None, directory: Path, *, install: bool) -> None:
    """Write the package of a new plugin into a folder of its NAME, "repid-something" by convention.

    It works as it is: it can be installed, is found by its name, and its tests, with the conformance suite wired in, are green.
    What stands in for a store is in memory, to be changed piece by piece.
    """
    chosen = list(dict.fromkeys(kind.strip() for part in kinds for kind in part.split(",") if kind.strip()))
    target = directory / name
    try:
        files = scaffold.render(name, chosen, license_, author)
        scaffold.write(files, target)
    except scaffold.ScaffoldError as error:
        raise Failure(str(error), USAGE) from error
    click.echo(f"wrote {target}: {len(files)} files\n")
    for file in sorted(files):
        click.echo(f"  {file}")
    if install:
        _install(target)
    flag = " --in-process" if {"message-broker", "bucket-broker"} & set(chosen) else ""
    steps = [] if install else [f"pip install -e '{target}[test]'"]
    click.echo("\nNext:")
    for step in (*steps, f"repid plugin test {name}{flag}", f"pytest {target}"):
        click.echo(f"  {step}")


def _install(target: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-e",
        f"{target.resolve()}[test]",
    ]
    click.echo(f"\ninstalling it: pip install -e '{target}[test]'")
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)  # noqa: S603
    if done.returncode:
        reason = done.stderr.strip() or done.stdout.strip()
        raise Failure(
            f"{target} is written, but pip could not install it; do so by hand, with the installer that you use:\n{reason}",
        )


@plugin.command(
    "test",
    cls=Command,
    short_help="Hold an installed plugin to the contract.",
    examples=[
        "repid plugin test repid-acme --in-process",
        'repid plugin test repid-redis --url redis://localhost/9 --set lease="1 s"',
        "repid plugin test repid-acme --config repid.toml --report conformance.json",
    ],
    shape={
        "format": 1,
        "plugin": "text",
        "version": "text",
        "suites": [
            {
                "suite": "text",
                "summary": "text",
                "promises": [
                    {
                        "number": "text",
                        "text": "text",
                        "test": "text",
                        "outcome": "kept, not declared, broken, deviating or not run",
                        "reason": "text",
                        "measured": {"name": "text"},
                    }
                ],
            }
        ],
    },
)
@click.argument("name")
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A repid.toml or pyproject.toml: its settings of this plugin's backends are used.",
)
@click.option("--url", help="Where the server of its brokers is.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="A setting of those of its backends that have it.")
@click.option(
    "--in-process",
    is_flag=True,
    help="Its brokers keep all in memory, and go by the clock that they are given: the tests move it instead of waiting.",
)
@click.option(
    "--no-prefix",
    is_flag=True,
    help="Its brokers have no setting prefix: let the tests work in the very place that the url names, and delete what is there.",
)
@click.option("--deviation", "deviations", multiple=True, metavar="TEST=WHY", help="A test that it does not keep by design.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write all findings to this file, as JSON.")
@json_option
@click.option("--quiet", "-q", is_flag=True, help="Print only what is broken, and a line for each backend.")
def test(
    name: str,
    config: Path | None,
    url: str | None,
    sets: tuple[str, ...],
    deviations: tuple[str, ...],
    report: Path | None,
    *,
    in_process: bool,
    no_prefix: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Hold an installed plugin to the contract, by the NAME of its distribution or of one of its backends.

    Runs the conformance suite of each of its backends, and says of each promise whether it is kept, not declared, or broken.
    What needs a helper that only tests can have, such as killing a worker, is "not declared" here: the plugin's own tests
    show it. The exit status is 1 if a promise is broken.
    """
    if find_spec("pytest") is None or find_spec("pytest_asyncio") is None:
        raise Failure("repid plugin test needs pytest: pip install 'repid-core[testing]'")
    from repid_core.testing.conformance import installed  # noqa: PLC0415 — it needs pytest

    target = plugin_target.find(name, config, url, _pairs("--set", sets))
    if not no_prefix:
        plugin_target.check_prefix(target)
    if not in_process:
        _warn_of_long_leases(target)
    found = installed.run(
        target.sections,
        in_process=in_process,
        deviations=_pairs("--deviation", deviations),
        progress=_show if sys.stderr.isatty() else None,
    )
    if not found.complete:
        raise Failure(f"the suites did not run to their end; pytest says:\n{found.output}")
    result = plugin_report.of(target, found.suites)
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    if report is not None:
        _write(report, text)
    click.echo(text.rstrip() if as_json else plugin_report.text(result, quiet=quiet))
    if report is not None and not as_json:
        click.echo(f"\nreport: {report}")
    if plugin_report.is_broken(result):
        sys.exit(PROBLEM)


def _pairs(option: str, given: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in given:
        key, separator, value = text.partition("=")
        if not (separator and key.strip()):
            raise click.BadParameter(f"{text!r} is not of the form KEY=VALUE", param_hint=f"'{option}'")
        pairs[key.strip()] = value.strip()
    return pairs


def _show(done: int, of: int) -> None:
    """How far the tests are."""
    click.echo(f"\r{done}/{of} tests" if done < of else "\r\033[K", err=True, nl=False)


def _warn_of_long_leases(target: plugin_target.Target) -> None:
    for section in target.sections:
        if section.kind is Kind.MESSAGE_BROKER and (lease := section.build().limits.lease) > timedelta(seconds=2):
            hint = ', or --set lease="1 s"' if "lease" in keys_of(type(section.settings)) else ""
            click.echo(
                f"the lease of {section.path} is {lease.total_seconds():g} s, and some tests wait for it, one ten times over; "
                f"it goes faster with --in-process, if there is no server{hint}",
                err=True,
            )


def _write(report: Path, text: str) -> None:
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(text, "utf-8")
    except OSError as error:
        raise Failure(f"the report cannot be written to {report}: {error.strerror}") from error
