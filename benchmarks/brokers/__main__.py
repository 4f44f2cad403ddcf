"""Measure task queues side by side on one server: `python -m benchmarks.brokers redis`, or `rabbitmq`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.brokers.report import OURS, RAW, table
from benchmarks.brokers.rounds import MEASURES, Candidate, Rounds, Row, failures
from benchmarks.brokers.server import RabbitMQ, Redis

# By broker and name: the adapter, and the distribution whose version is told.
ADAPTERS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "redis": {
        OURS: ("repid:Repid", "repid-redis"),
        "raw-list": ("raw:RawList", "redis"),
        "raw-stream": ("raw:RawStream", "redis"),
        "saq": ("saq:Saq", "saq"),
        "taskiq-list": ("taskiq:TaskiqList", "taskiq-redis"),
        "taskiq-stream": ("taskiq:TaskiqStream", "taskiq-redis"),
        "arq": ("arq:Arq", "arq"),
        "streaq": ("streaq:Streaq", "streaq"),
        "rq": ("rq:Rq", "rq"),
    },
    "rabbitmq": {
        OURS: ("repid:Repid", "repid-rabbitmq"),
        f"{OURS}-quorum": ("repid:RepidQuorum", "repid-rabbitmq"),
        f"{OURS}-ahead": ("repid:RepidAhead", "repid-rabbitmq"),
        "raw-aio-pika": ("raw:AioPika", "aio-pika"),
        "raw-aio-pika-quorum": ("raw:AioPikaQuorum", "aio-pika"),
        "raw-aiormq": ("raw:Aiormq", "aiormq"),
        "taskiq": ("taskiq:Taskiq", "taskiq-aio-pika"),
        "faststream": ("faststream:FastStream", "faststream"),
        "dramatiq": ("dramatiq:Dramatiq", "dramatiq"),
    },
}
SERVERS: Mapping[str, type[Redis | RabbitMQ]] = {"redis": Redis, "rabbitmq": RabbitMQ}
ALWAYS = {
    broker: [name for name in known if name.startswith((OURS, RAW)) and name not in {"raw-aio-pika-quorum", f"{OURS}-ahead"}]
    for broker, known in ADAPTERS.items()
}


def candidates(broker: str, peers: Sequence[str], without: Sequence[str]) -> dict[str, Candidate]:
    """Who takes part, as the command line says."""
    known, chosen = ADAPTERS[broker], {}
    for peer in (*ALWAYS[broker], *peers):
        name, _, python = peer.partition("=")
        if name not in known:
            raise SystemExit(f"--peer {name}: choose from {', '.join(known)}")
        chosen[name] = Candidate(f"benchmarks.brokers.{broker}.{known[name][0]}", python or sys.executable)
    return {name: candidate for name, candidate in chosen.items() if name not in without}


def version(distribution: str, python: str) -> str:
    """Which version a Python has."""
    code = f"from importlib.metadata import version; print(version({distribution!r}), end='')"
    told = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603 — as the user says
    if told.returncode:
        raise SystemExit(f"{python} does not have {distribution}: pip install it there")
    return f"{distribution} {told.stdout}"


def read(files: Sequence[str]) -> list[Row]:
    """Rows that earlier runs have written."""
    return [Row(**json.loads(line)) for file in files for line in Path(file).read_text(encoding="utf-8").splitlines()]


def show(rows: Sequence[Row]) -> None:
    """Print the table, and what went wrong."""
    print(table(rows))
    if failed := failures(rows):
        print("\nFailed:", *failed, sep="\n- ")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.brokers", description=__doc__)
    parser.add_argument("broker", choices=list(ADAPTERS))
    parser.add_argument("--peer", action="append", default=[], metavar="NAME[=PYTHON]", help="a library that takes part too")
    parser.add_argument(
        "--without", action="append", default=[], metavar="NAME", help="one of those that always do, which does not"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=20_000, help="the most for one measurement")
    parser.add_argument("--seconds", type=float, default=4.0, help="after which a measurement is broken off")
    parser.add_argument("--payload", type=int, default=100, help="bytes of text in each job")
    parser.add_argument("--latencies", type=int, default=300, help="jobs whose latency is taken")
    parser.add_argument("--sleepers", type=int, default=2000, help="jobs that sleep for a second")
    parser.add_argument("--only", default=",".join(MEASURES), help="measures, with commas between them; default: %(default)s")
    parser.add_argument(
        "--server", metavar="PATH", help="what to start; default: redis-server or valkey-server. For RabbitMQ, the rabbitmqctl"
    )
    parser.add_argument(
        "--url", help="a server that runs: Redis with an empty database, which is flushed again and again; RabbitMQ"
    )
    parser.add_argument(
        "--policy", help="RabbitMQ: a policy for all queues, such as '{\"queue-version\": 2}' for the storage of RabbitMQ 4"
    )
    parser.add_argument("--out", metavar="FILE", help="where every single figure is added, as a line of JSON")
    parser.add_argument("--render", nargs="+", metavar="FILE", help="measure nothing, but print the table of such files")
    options = parser.parse_args(arguments)
    if options.render:
        show(read(options.render))
        return
    only = options.only.split(",")
    if unknown := set(only).difference(MEASURES):
        parser.error(f"--only {','.join(unknown)}: choose from {','.join(MEASURES)}")
    chosen = candidates(options.broker, options.peer, options.without)
    versions = {version(ADAPTERS[options.broker][name][1], candidate.python): None for name, candidate in chosen.items()}
    rows = []
    if options.policy and options.broker != "rabbitmq":
        parser.error("--policy is for RabbitMQ")
    given = (options.url, options.server, *([options.policy] if options.policy else []))
    with SERVERS[options.broker](*given) as server:
        print(f"{server.describe()}, Python {platform.python_version()}, {os.cpu_count()} processors; {', '.join(versions)}\n")
        rounds = Rounds(
            server,
            chosen,
            jobs=options.jobs,
            seconds=options.seconds,
            payload=options.payload,
            latencies=options.latencies,
            sleepers=options.sleepers,
            only=only,
        )
        for row in rounds.run(options.rounds):
            rows.append(row)
            line = json.dumps(asdict(row))
            print(line, file=sys.stderr, flush=True)
            if options.out:
                with Path(options.out).open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
    show(rows)


if __name__ == "__main__":
    main()
