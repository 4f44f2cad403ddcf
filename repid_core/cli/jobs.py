"""`repid enqueue` and `repid result`: one job, in and out."""

from __future__ import annotations

import json
import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from repid_core.abc import BucketBroker
from repid_core.cli.group import DONE, NOTHING, PROBLEM, USAGE, Command, Failure
from repid_core.cli.options import DURATION, QUEUE, Connect, connection_options, emit, json_option, on_broker, on_connection
from repid_core.connection import Connection
from repid_core.data import Priority, Receipt, ResultBucket, check_id
from repid_core.errors import ResultTimeoutError
from repid_core.job import Job

_RESULT = {
    "id": "text",
    "found": "true or false",
    "success": "true or false; null if there is none",
    "data": "what the actor returned",
    "exception": "the exception's type, or null",
    "traceback": "text or null",
    "started": "ISO 8601 or null",
    "duration_ms": "number or null",
}


@click.command(
    cls=Command,
    short_help="Enqueue a job.",
    examples=[
        """repid enqueue greet --queue mail --args '{"user_id": 1, "name": "Alex"}'""",
        "repid enqueue report --delay '2 hours' --priority high",
        "repid enqueue report --cron '30 7 * * mon-fri' --timezone Europe/Berlin --id report --on-duplicate replace",
        "repid enqueue greet --queue mail --args @arguments.json --wait --wait-timeout 30s",
    ],
    shape={
        "id": "text",
        "outcome": "new, replaced or kept",
        "queue": "text",
        "result_id": "text or null",
        "result": "as of `repid result`, or null",
    },
)
@click.argument("name")
@click.option(
    "--args", "args_text", metavar="JSON", help="The arguments: an object by name, an array by position; @FILE, or - for stdin."
)
@click.option("--queue", "-q", type=QUEUE, default="default", show_default=True, help="Where it goes.")
@click.option("--delay", type=DURATION, help="Not before this time from now: '30 s', '2 hours', PT15M.")
@click.option("--every", type=DURATION, help="Again and again, so far apart; first after this time, or after --delay.")
@click.option("--cron", metavar="LINE", help="Whenever this cron line says, from --delay on: '30 7 * * mon-fri'.")
@click.option("--timezone", metavar="ZONE", help="Where --cron is read, by default in UTC: Europe/Berlin.")
@click.option(
    "--priority",
    type=click.Choice([priority.name.lower() for priority in Priority]),
    default="medium",
    show_default=True,
    help="Higher goes first.",
)
@click.option("--id", "id_", help="An id of its own, unique in the queue while it is live.")
@click.option(
    "--on-duplicate",
    type=click.Choice(["raise", "keep", "replace"]),
    default="raise",
    show_default=True,
    help="If the id is live: refuse this job, keep that one, or replace it.",
)
@click.option("--retries", type=click.IntRange(0), default=0, show_default=True, help="Attempts after a failed one.")
@click.option("--timeout", type=DURATION, default="10 min", show_default=True, help="The longest run.")
@click.option("--ttl", type=DURATION, help="Not run once this time has passed since it was due.")
@click.option("--wait", is_flag=True, help="Wait for the result, and print it.")
@click.option("--wait-timeout", type=DURATION, help="The longest wait.")
@json_option
@connection_options
def enqueue(
    name: str,
    connect: Connect,
    args_text: str | None,
    queue: str,
    delay: timedelta | None,
    every: timedelta | None,
    priority: str,
    wait: bool,
    wait_timeout: timedelta | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Enqueue a job for the actor NAME, and print its id, which is also its result's unless --id was given.

    Exit status: 0 if it was enqueued, and with --wait has succeeded; 1 if it was refused or has failed; 2 for a wrong command
    line; 3 if with --wait-timeout no result came in time.
    """
    until = None if delay is None else datetime.now(UTC) + delay
    own = options.pop("id_")
    _check_together(own, every, wait=wait, **options)
    id_ = str(uuid.uuid4())  # of the result, and unless there is an id of its own, which may come again, of the job
    job: Job[Any] = Job(
        name,
        id_=own or id_,
        result_id=id_,
        queue=queue,
        priority=Priority[priority.upper()],
        deferred_until=until,
        deferred_by=every,
        args=_arguments(args_text),
        **options,
    )

    async def work(connection: Connection) -> ResultBucket | None:
        if wait:
            connection.payloads.results()  # or an error, before anything is sent
        receipt = await job.enqueue()
        if not as_json:
            click.echo(receipt.id_)
        bucket = late = None
        if wait:
            try:
                bucket = await connection.payloads.wait_result(id_, wait_timeout)
            except ResultTimeoutError:
                late = f"no result came within {wait_timeout}: repid result {id_} --wait goes on waiting"
        if as_json:
            emit(_sent(receipt, queue, None if connection.results_bucket_broker is None else id_, bucket))
        elif bucket is not None:
            _print(bucket)
        if late is not None:
            raise Failure(late, NOTHING)
        return bucket

    bucket = on_connection(connect, work)
    sys.exit(DONE if bucket is None or bucket.success else PROBLEM)


@click.command(
    cls=Command,
    short_help="Print the result of a job.",
    examples=[
        "repid result 1f0c7b2e-5d0a-4c57-9d0e-1d7d1f6f3a11",
        "repid result nightly-report --wait --wait-timeout '5 min' --json",
    ],
    shape=_RESULT,
)
@click.argument("id_", metavar="ID")
@click.option("--wait", is_flag=True, help="Wait until it is there.")
@click.option("--wait-timeout", type=DURATION, help="The longest wait.")
@json_option
@connection_options
def result(id_: str, connect: Connect, wait: bool, wait_timeout: timedelta | None, as_json: bool) -> None:
    """Print the result that is stored under ID: what the actor returned, as JSON, or how it failed.

    ID is what `repid enqueue` prints, or the `result_id` of a `Job`.

    Exit status: 0 if the job succeeded, 1 if it failed, 3 if there is no result, or none yet.
    """
    try:
        check_id(id_, "result id")
    except ValueError as error:
        raise Failure(str(error), USAGE) from error

    async def work(connection: Connection, _: BucketBroker) -> ResultBucket | None:
        if not (wait or wait_timeout is not None):
            return await connection.payloads.get_result(id_)
        try:
            return await connection.payloads.wait_result(id_, wait_timeout)
        except ResultTimeoutError:
            return None

    bucket = on_broker(connect, lambda connection: connection.payloads.results(), work)
    if as_json:
        emit(_shape(id_, bucket))
    elif bucket is None:
        click.echo(f"No result {id_}: the job is queued or running, stores none, or its time has passed.", err=True)
    else:
        _print(bucket)
    sys.exit(NOTHING if bucket is None else DONE if bucket.success else PROBLEM)


def _check_together(
    own: str | None, every: timedelta | None, *, wait: bool, cron: str | None, on_duplicate: str, **_: Any
) -> None:
    """Options that do not go together, in the command's words."""
    if every is not None and cron is not None:
        raise Failure("--every and --cron: a job recurs by one of them", USAGE)
    if on_duplicate != "raise" and own is None:
        raise Failure(f"--on-duplicate {on_duplicate} needs an --id: a generated one is always new", USAGE)
    if on_duplicate == "keep" and wait:
        raise Failure("--on-duplicate keep with --wait: the job that is kept has a result of its own, with another id", USAGE)


def _arguments(text: str | None) -> Any:
    if text is None:
        return None
    try:
        if text == "-":
            text = sys.stdin.read()
        elif text.startswith("@"):
            text = Path(text[1:]).read_text("utf-8")
        return json.loads(text)
    except OSError as error:
        raise Failure(f"--args {text}: {error.strerror}", USAGE) from error
    except ValueError as error:  # the text may be anything, and is not repeated
        raise Failure(f"--args is not JSON: {error}", USAGE) from error


def _sent(receipt: Receipt, queue: str, result_id: str | None, bucket: ResultBucket | None) -> dict[str, Any]:
    result = None if bucket is None or result_id is None else _shape(result_id, bucket)
    return {"id": receipt.id_, "outcome": receipt.outcome.value, "queue": queue, "result_id": result_id, "result": result}


def _shape(id_: str, bucket: ResultBucket | None) -> dict[str, Any]:
    if bucket is None:
        return dict.fromkeys(_RESULT) | {"id": id_, "found": False}
    return {
        "id": id_,
        "found": True,
        "success": bucket.success,
        "data": bucket.data,
        "exception": bucket.exception,
        "traceback": bucket.traceback,
        "started": datetime.fromtimestamp(bucket.started_when / 1e9, UTC).isoformat(),
        "duration_ms": bucket.duration / timedelta(milliseconds=1),
    }


def _print(bucket: ResultBucket) -> None:
    if bucket.success:
        click.echo(json.dumps(bucket.data, ensure_ascii=False, indent=2, default=str))
        return
    click.echo(f"The job failed: {bucket.exception}", err=True)
    if bucket.traceback:
        click.echo(bucket.traceback.rstrip(), err=True)
