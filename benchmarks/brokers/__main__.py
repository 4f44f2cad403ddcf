"""Task queues side by side: `python -m benchmarks.brokers redis --peer saq=PYTHON …`; README.md in the folder above says how."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.brokers.server import Redis

PEERS = {
    "redis": {
        "repid": "repid:Repid",
        "raw": "raw:Raw",
        "saq": "saq:Saq",
        "taskiq-list": "taskiq:List",
        "taskiq-stream": "taskiq:Stream",
        "streaq": "streaq:Streaq",
        "rq": "rq:Rq",
    }
}
COLUMNS = (  # title, measure, figure
    ("enqueue, one by one /s", "seq", "per_second"),
    ("100 producers /s", "conc", "per_second"),
    ("in bulk /s", "bulk", "per_second"),
    ("consume, 1 at once /s", "consume 1", "per_second"),
    ("100 at once /s", "consume 100", "per_second"),
    ("1000 at once /s", "consume 1000", "per_second"),
    ("round trip /s", "roundtrip", "per_second"),
    ("latency p50 ms", "latency", "p50_ms"),
    ("latency p99 ms", "latency", "p99_ms"),
    ("2,000 sleepers s", "sleepers", "total_s"),
    ("server µs, enqueue", "conc", "server_us"),
    ("server µs, consume", "consume 100", "server_us"),
    ("bytes queued", "conc", "bytes"),
    ("idle % of a core", "idle", "cpu_percent"),
)
SLEEPERS = 2000
ROOT = Path(__file__).parents[2]

Figures = dict[str, Any]


class Contest:
    """One server, and those who are measured on it."""

    def __init__(self, options: argparse.Namespace, server: Redis) -> None:
        self.options, self.server = options, server

    def round(self, name: str, python: str) -> dict[str, Figures]:
        """All measures of one peer, once."""
        found: dict[str, Figures] = {}
        peer = f"benchmarks.brokers.{self.options.broker}.{PEERS[self.options.broker][name]}"

        def run(measure: str, queue: str, **choices: object) -> Figures:
            words = [f"--{key}={value}" for key, value in choices.items()]
            command = [python, "-m", "benchmarks.brokers.child", peer, measure, f"--url={self.server.url}", f"--queue={queue}"]
            done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603 — as the user says
            lines = done.stdout.splitlines()
            figures: Figures = json.loads(lines[-1]) if lines else {"error": done.stderr[-300:]}
            if "error" in figures:
                print(f"{name}, {measure}: {figures['error']}", file=sys.stderr)
            return figures

        for mode, concurrency in (("seq", 1), ("conc", 100), ("bulk", 1000)):
            queue = f"bench-{uuid.uuid4().hex[:8]}"
            produced = found[mode] = run(mode, queue, jobs=self.options.jobs)
            if "jobs" not in produced:
                produced = run("conc", queue, jobs=self.options.jobs)
            jobs = int(produced.get("jobs", 0))
            found[f"consume {concurrency}"] = run("consume", queue, jobs=jobs, concurrency=concurrency) if jobs else {}
            self.server.clean()
        queue = f"bench-{uuid.uuid4().hex[:8]}"
        found["latency"] = run("latency", queue, jobs=self.options.latencies)
        found["roundtrip"] = run("roundtrip", queue, jobs=self.options.jobs)
        self.server.clean()
        run("conc", queue, jobs=SLEEPERS, actor="sleeper")
        found["sleepers"] = run("consume", queue, jobs=SLEEPERS, concurrency=1000, seconds=20)
        self.server.clean()
        found["idle"] = run("idle", queue, seconds=3)
        self.server.clean()
        return found


def table(rounds: dict[str, list[dict[str, Figures]]]) -> str:
    """Medians of all rounds, smallest and largest in brackets."""
    lines = ["| " + " | ".join(["", *rounds]) + " |", "|---" * (1 + len(rounds)) + "|"]
    for title, measure, figure in COLUMNS:
        cells = []
        for results in rounds.values():
            values = [result[measure][figure] for result in results if figure in result.get(measure, {})]
            text = "–"
            if values:
                low, high = _plain(min(values)), _plain(max(values))
                text = _plain(statistics.median(values)) + (f" ({low}–{high})" if len(values) > 1 else "")
            cells.append(text)
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _plain(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.brokers", description=__doc__)
    parser.add_argument("broker", choices=PEERS)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="who else, and the Python that has it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--latencies", type=int, default=200)
    parser.add_argument("--url", help="a server that runs, with an empty database; by default one is started")
    parser.add_argument("--server", help="the server's program, if it is not on the PATH")
    parser.add_argument("--out", type=Path, help="a file for every figure, as JSON")
    options = parser.parse_args(arguments)
    peers = {"repid": sys.executable}
    for choice in options.peer:
        name, _, python = choice.partition("=")
        if name not in PEERS[options.broker]:
            parser.error(f"--peer {choice}: there are {', '.join(PEERS[options.broker])}")
        peers[name] = python or sys.executable
    rounds: dict[str, list[dict[str, Figures]]] = {name: [] for name in peers}
    with Redis(options.url, options.server) as server:
        contest = Contest(options, server)
        for number in range(options.rounds):
            for name, python in peers.items():
                rounds[name].append(contest.round(name, python))
                print(f"round {number + 1} of {options.rounds}: {name}", file=sys.stderr)
        print(f"{server.describe()}, {options.rounds} rounds, {options.jobs:,} jobs of about 100 bytes\n")
    print(table(rounds))
    if options.out is not None:
        options.out.write_text(json.dumps(rounds, indent=1))


if __name__ == "__main__":
    main()
