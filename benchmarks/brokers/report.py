"""One table: medians, the spread of the rounds, and ratios within rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.brokers.rounds import Row

OURS = "repid"
RAW = "raw-"  # how the names of those begin that are no task queues

ByRound = dict[int, float]


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        title: What is measured.
        parts: Measures, and which of their figures, that are added.
        least: Whether less is better.
    """

    title: str
    parts: Sequence[tuple[str, str]]
    least: bool = False


LINES = (
    Line("enqueue, one after another, jobs/s", [("seq", "per_second")]),
    Line("enqueue, 100 producers, jobs/s", [("conc", "per_second")]),
    Line("enqueue, 100 in a call, jobs/s", [("bulk", "per_second")]),
    Line("enqueue, 10,000 in a call, jobs/s", [("many", "per_second")]),
    Line("enqueue for later, 100 producers, jobs/s", [("delayed", "per_second")]),
    Line("run, one at a time, jobs/s", [("c1", "per_second")]),
    Line("run, 100 at once, jobs/s", [("c100", "per_second")]),
    Line("run, 1000 at once, jobs/s", [("c1000", "per_second")]),
    Line("enqueue and get the result, 100 at once, jobs/s", [("roundtrip", "per_second")]),
    Line("from enqueue to start, median, ms", [("latency", "p50_ms")], least=True),
    Line("from enqueue to start, 99 %, ms", [("latency", "p99_ms")], least=True),
    Line("2,000 jobs of 1 s, 1000 at once, s", [("sleeper", "total_s")], least=True),
    Line("producer, CPU µs/job", [("conc", "cpu_us")], least=True),
    Line("worker, CPU µs/job", [("c100", "cpu_us")], least=True),
    Line("server, CPU µs/job", [("conc", "server_us"), ("c100", "server_us")], least=True),
    Line("server, bytes/queued job", [("conc", "bytes")], least=True),
    Line("idle worker, % of a core", [("idle", "cpu_percent")], least=True),
    Line("idle worker, packets/s", [("idle", "packets_per_s")], least=True),
    Line("worker, MB", [("c100", "rss_mb")], least=True),
)


def table(rows: Sequence[Row]) -> str:
    """The table in Markdown."""
    names = list(dict.fromkeys(row.peer for row in rows))
    ours_first = sorted(names, key=lambda name: (name != OURS, name.startswith(RAW)))
    ratios = [title for title, _ in _RIVALS] if OURS in names else []
    lines = [[f"median of {max(row.number for row in rows)} (min–max)", *ours_first, *ratios]]
    for line in LINES:
        values = {name: by_round for name in ours_first if (by_round := _values(rows, name, line.parts))}
        if not values:
            continue
        cells = [_spread(values[name]) if name in values else "–" for name in ours_first]
        lines.append([f"{line.title} {'↓' if line.least else '↑'}", *cells])
        lines[-1] += [_ratio(values, line, rivals) for _, rivals in _RIVALS] if ratios else []
    lines.insert(1, ["---", *["--:"] * (len(lines[0]) - 1)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


_RIVALS: Sequence[tuple[str, Callable[[str], bool]]] = (
    (f"{OURS} ÷ best other queue", lambda name: not name.startswith((OURS, RAW))),
    (f"{OURS} ÷ best raw client", lambda name: name.startswith(RAW)),
)


def _values(rows: Sequence[Row], name: str, parts: Sequence[tuple[str, str]]) -> ByRound:
    """The figure by round, of those rounds that have all its parts."""
    found = [
        {row.number: row.figures[figure] for row in rows if (row.peer, row.measure) == (name, measure) and figure in row.figures}
        for measure, figure in parts
    ]
    return {number: sum(part[number] for part in found) for number in found[0] if all(number in part for part in found)}


def _ratio(values: Mapping[str, ByRound], line: Line, rivals: Callable[[str], bool]) -> str:
    medians = {name: median(by_round.values()) for name, by_round in values.items() if rivals(name)}
    if not medians or OURS not in values:
        return "–"
    best = (min if line.least else max)(medians, key=lambda name: medians[name])
    ours, theirs = values[OURS], values[best]
    ratios = {number: ours[number] / theirs[number] for number in ours.keys() & theirs.keys() if theirs[number]}
    return f"{_spread(ratios)} {best}" if ratios else "–"


def _spread(by_round: ByRound) -> str:
    values = by_round.values()
    middle = _number(median(values))
    return middle if len(by_round) == 1 else f"{middle} ({_number(min(values))}–{_number(max(values))})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
