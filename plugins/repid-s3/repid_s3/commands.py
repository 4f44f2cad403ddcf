"""`repid s3 lifecycle`: look at the rules of a bucket, and change them, after a diff."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Any

import click

from repid_s3 import lifecycle
from repid_s3.client import make
from repid_s3.errors import explained
from repid_s3.settings import S3BucketBrokerSettings


@click.group()
def s3() -> None:
    """The buckets of jobs in S3."""


@s3.group("lifecycle")
def lifecycle_() -> None:
    """The rules that free the storage of what has expired. URL is s3://bucket/prefix/, as in the settings."""


def _options(command: Any) -> Any:
    for option in (
        click.argument("url"),
        click.option("--retention", type=click.Choice(["tags", "prefix"]), default="tags", show_default=True),
        click.option("--prefix-days", type=int, help="With --retention prefix: after how many days all is deleted."),
        click.option("--ttl-days", help="With --retention tags: the classes, with commas between them."),
    ):
        command = option(command)
    return command


def _settings(url: str, retention: Any, prefix_days: int | None, ttl_days: str | None) -> S3BucketBrokerSettings:
    more: dict[str, Any] = {}
    try:
        if ttl_days:
            more["ttl_days"] = tuple(int(days) for days in ttl_days.split(","))
        return S3BucketBrokerSettings(url, retention=retention, prefix_days=prefix_days, **more)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _do(settings: S3BucketBrokerSettings, call: Any) -> Any:
    """Call something with boto3's client, and put its errors into words."""
    try:
        return call(make(settings))
    except lifecycle.ForeignRulesError as error:
        raise click.ClickException(str(error)) from error
    except click.ClickException:
        raise
    except Exception as error:
        operation = getattr(error, "operation_name", "GetBucketLifecycleConfiguration")
        raise click.ClickException(str(explained(error, operation, settings))) from error


def _lines(rules: Sequence[lifecycle.Rule]) -> list[str]:
    return json.dumps(sorted(rules, key=lambda rule: str(rule.get("ID"))), indent=2, default=str).splitlines()


def _agreed(before: Sequence[lifecycle.Rule], after: Sequence[lifecycle.Rule], *, yes: bool) -> bool:
    """Show the difference, and ask."""
    for line in difflib.unified_diff(_lines(before), _lines(after), "now", "then", lineterm=""):
        colour = "green" if line.startswith("+") else "red" if line.startswith("-") else None
        click.secho(line, fg=colour)
    return yes or click.confirm("Write this?")


@lifecycle_.command()
@_options
def show(**options: Any) -> None:
    """Show all rules of the bucket, and say whether ours are among them."""
    settings = _settings(**options)
    document = _do(settings, lambda client: lifecycle.read(client, settings))
    plan = lifecycle.planned(document, settings)
    click.echo("\n".join(_lines(document.rules)))
    for said in plan.early:
        click.secho(f"deletes ours too early: {said}", fg="yellow", err=True)
    if plan.missing:
        click.secho(f"missing, or different: {', '.join(plan.missing)}", fg="yellow", err=True)
        raise SystemExit(1)


@lifecycle_.command()
@_options
@click.option("--yes", is_flag=True, help="Do not ask.")
def apply(*, yes: bool, **options: Any) -> None:
    """Add our rules to those of the bucket."""
    settings = _settings(**options)
    document = _do(settings, lambda client: lifecycle.read(client, settings))
    plan = lifecycle.planned(document, settings)
    if plan.obstacle:
        raise click.ClickException(plan.obstacle)
    if not plan.missing:
        click.echo("All rules are there.")
    elif _agreed(document.rules, plan.rules, yes=yes):
        done = _do(settings, lambda client: lifecycle.ensure(client, settings))
        if done.missing:
            raise click.ClickException(f"still missing: {', '.join(done.missing)}: does somebody else write them now?")
        click.echo("Written.")


@lifecycle_.command()
@_options
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(*, yes: bool, **options: Any) -> None:
    """Remove our rules of this prefix, and no others: from then on the storage of what has expired is not freed."""
    settings = _settings(**options)
    document = _do(settings, lambda client: lifecycle.read(client, settings))
    if document.unknown:
        raise click.ClickException(lifecycle.planned(document, settings).obstacle)
    left = [rule for rule in document.rules if not str(rule.get("ID", "")).startswith(f"{lifecycle.named(settings)}-")]
    if len(left) == len(document.rules):
        click.echo("None of ours is there.")
    elif _agreed(document.rules, left, yes=yes):
        _do(settings, lambda client: lifecycle.write(client, left, document.beside, settings))
        click.echo("Removed.")
