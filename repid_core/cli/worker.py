"""`repid worker`: run workers, in this process or in several under a supervisor."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import click
from attrs import asdict, frozen

from repid_core import __version__
from repid_core.app import Repid
from repid_core.cli import describe, logs, targets
from repid_core.cli.group import DONE, USAGE, Command, Failure
from repid_core.cli.options import QUEUE, app_option, config_option, run
from repid_core.cli.supervisor import Supervisor
from repid_core.connection import Connection
from repid_core.router import Router
from repid_core.worker import Worker

logger = logging.getLogger(__name__)


@frozen
class Plan:
    """What was asked for on the command line."""

    targets: tuple[str, ...]
    app: str | None
    config: Path | None
    queues: tuple[str, ...]
    concurrency: int | None
    threads: int | None
    grace: float | None
    loop: str
    log_format: logs.LogFormat
    log_level: str

    def arguments(self) -> list[str]:
        """The same as a command line, for the workers of a supervisor."""
        words = ["worker", *self.targets, "--loop", self.loop, "--log-format", self.log_format, "--log-level", self.log_level]
        for name in ("app", "config", "concurrency", "threads", "grace"):
            value = getattr(self, name)
            words += [] if value is None else [f"--{name}", str(value)]
        return [*words, *(word for queue in self.queues for word in ("--queue", queue))]


@click.command(
    cls=Command,
    short_help="Run workers.",
    examples=[
        "repid worker app.tasks:router",
        "repid worker app.tasks:router app.mail:router --processes 4 --concurrency 100",
        "repid worker app.tasks:router --app app.main:app --queue mail --log-format json",
        "repid worker app.tasks:router --reload",
    ],
)
@click.argument("targets_", metavar="MODULE:ATTRIBUTE...", nargs=-1, required=True)
@app_option
@config_option
@click.option("--processes", "-p", type=click.IntRange(1), help="As many worker processes, restarted when they crash.")
@click.option(
    "--concurrency", "-c", type=click.IntRange(1), help="The most jobs at once in a process.  [default: the worker's, 1000]"
)
@click.option(
    "--threads", type=click.IntRange(1), help="The most actors that are plain functions at once.  [default: the worker's]"
)
@click.option("--queue", "-q", "queues", type=QUEUE, multiple=True, help="Serve only this queue; may be given several times.")
@click.option(
    "--grace", type=click.FloatRange(0), metavar="SECONDS", help="For running jobs at the end.  [default: the worker's, 25]"
)
@click.option("--reload", is_flag=True, help="Start anew when a Python file here changes; for development.")
@click.option(
    "--loop",
    type=click.Choice(["auto", "asyncio", "uvloop"]),
    default="auto",
    show_default=True,
    help="auto: uvloop if installed.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json", "none"]),
    default="text",
    show_default=True,
    help="none: the application's.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="The least that is logged.",
)
@click.option("--child", hidden=True, metavar="N/M", help="Which of the supervisor's workers this is.")
def worker(targets_: tuple[str, ...], processes: int | None, reload: bool, child: str | None, **options: Any) -> None:
    """Run the jobs of routers.

    Each MODULE:ATTRIBUTE is a Router, or a function that gives one; or one Worker. Modules are searched for in the current
    directory first.

    SIGTERM or SIGINT (Ctrl-C) ends it: running jobs get the time of --grace, and what is left goes back to its queue, with
    nothing lost and no attempt counted. A second signal gives back at once. With --processes, a worker that crashes is
    started again, after a pause that grows from half a second to half a minute.

    Exit status: 0 after an orderly end, 1 if a worker had to be killed, 2 if the command line, the configuration or the
    application is wrong.
    """
    plan = Plan(targets=targets_, **options)
    if child is None and (processes is not None or reload):
        _supervise(plan, processes or 1, reload=reload)
    else:
        _work(plan, child)


def _supervise(plan: Plan, processes: int, *, reload: bool) -> None:
    if sys.platform == "win32":
        raise Failure("--processes and --reload need POSIX: on Windows start the command once for each process", USAGE)
    logs.set_up("text" if plan.log_format == "none" else plan.log_format, plan.log_level, who="supervisor")
    command = [sys.executable, "-m", "repid_core", *plan.arguments()]
    watched = (Path.cwd(),) if reload else ()
    sys.exit(run(Supervisor(command, processes, watched).run))


def _work(plan: Plan, child: str | None) -> None:
    logs.set_up(plan.log_format, plan.log_level, who="" if child is None else f"worker {child.partition('/')[0]}")
    link = None if child is None else _link()
    made, connection = assembled(plan)
    run(lambda: _run(made, connection, plan, child, link), plan.loop)
    sys.exit(DONE)


def assembled(plan: Plan) -> tuple[Worker, Connection]:
    """The worker, and the connection that it runs on."""
    routers = targets.routers(plan.targets)
    made = _worker(routers)
    if plan.concurrency is not None:
        made.tasks_limit = plan.concurrency
    if plan.threads is not None:
        made.threads = plan.threads
    if plan.grace is not None:
        made.graceful_shutdown_time = plan.grace
    if plan.queues:
        if unknown := set(plan.queues) - set(made.queues):
            raise Failure(f"no actor has queue {', '.join(sorted(unknown))}: there are {', '.join(sorted(made.queues))}", USAGE)
        made.actors = {name: actor for name, actor in made.actors.items() if actor.queue in plan.queues}
    if made.connection is None:
        return made, targets.connection(plan.app, plan.config)
    if plan.app is not None or plan.config is not None:
        raise Failure("the worker has a connection of its own: leave out --app and --config", USAGE)
    return made, made.connection


def _worker(routers: Sequence[Router]) -> Worker:
    workers = [router for router in routers if isinstance(router, Worker)]
    if not workers:
        return Worker(routers)
    if len(routers) > 1:
        raise Failure("a Worker stands alone: give it, or routers", USAGE)
    return workers[0]


async def _run(made: Worker, connection: Connection, plan: Plan, child: str | None, link: socket.socket | None) -> None:
    _announce(made, connection, plan, child)
    async with AsyncExitStack() as stack:
        if link is not None:
            await _follow_supervisor(made, connection, link, stack)
        await stack.enter_async_context(Repid(connection).magic(auto_disconnect=True))
        summary = asdict(await made.run())
        told = ", ".join(f"{name} {count:,}" for name, count in summary.items() if count or name == "processed")
        logger.info("ended: %s", told, extra=summary if plan.log_format == "json" else None)


def _announce(made: Worker, connection: Connection, plan: Plan, child: str | None) -> None:
    """Say what is served, and from where; the first of several workers speaks for all."""
    number, _, of = (child or "1/1").partition("/")
    backends, loop = describe.backends(connection), type(asyncio.get_running_loop()).__module__.partition(".")[0]
    queues = {queue: sorted(topics) for queue, topics in sorted(made.queues.items())}
    if plan.log_format == "json":
        facts = {"version": __version__, "backends": backends, "serves": queues, "loop": loop, "concurrency": made.tasks_limit}
        logger.info("worker %s of %s starts", number, of, extra=facts)
    elif number == "1":
        lines = [f"repid {__version__}, {of} process{'es' if of != '1' else ''}, {made.tasks_limit:,} jobs at once, {loop}"]
        lines += [f"  {role:<10} {where}" for role, where in backends.items()]
        lines += [f"  queue      {queue}: {', '.join(actors)}" for queue, actors in queues.items()]
        click.echo("\n".join(lines), err=True)


def _link() -> socket.socket:
    """The line to the supervisor, which is this process's standard input; actors find an empty one."""
    link = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return link


async def _follow_supervisor(made: Worker, connection: Connection, link: socket.socket, stack: AsyncExitStack) -> None:
    """Tell the supervisor when the worker is up, and stop when there is no supervisor any more."""
    reader, writer = await asyncio.open_connection(sock=link)

    async def outlive_nobody() -> None:
        await reader.read()
        logger.error("the supervisor is gone: stopping")
        stopping.set()
        made.stop()

    def after_worker_start() -> None:
        writer.write(json.dumps({"grace": made.graceful_shutdown_time}).encode() + b"\n")
        if stopping.is_set():
            made.stop()

    stopping = asyncio.Event()
    connection.middleware.add(after_worker_start)
    task = asyncio.create_task(outlive_nobody(), name="repid supervisor")
    stack.callback(writer.close)
    stack.callback(task.cancel)
