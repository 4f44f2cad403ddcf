"""What a worker says: lines for a terminal, or JSON for programs. Never the arguments or results of jobs."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

LogFormat = Literal["text", "json", "none"]

_OWN: Final = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}
_COLOURS: Final = {logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31;1", logging.DEBUG: "2"}


class TextFormatter(logging.Formatter):
    """One line for people: time, level, who, what; what a record has beside its text stands at the end.

    Args:
        who: Which of several processes; empty if there is one.
        colour: Whether levels have colours.
    """

    def __init__(self, who: str = "", *, colour: bool = False) -> None:
        super().__init__()
        self._who, self._colour = who, colour

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname:<7}"
        if self._colour and (code := _COLOURS.get(record.levelno)):
            level = f"\x1b[{code}m{level}\x1b[0m"
        time = self.formatTime(record, "%H:%M:%S")
        words = [f"{time}.{int(record.msecs):03d}", level, self._who, record.getMessage()]
        line = " ".join(filter(None, words))
        if extras := {key: value for key, value in extras_of(record).items() if value is not None}:
            line += "  " + " ".join(f"{key}={_plain(value)}" for key, value in extras.items())
        return "\n".join(filter(None, (line, self._trace(record))))

    def _trace(self, record: logging.LogRecord) -> str:
        return self.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else ""


class JSONFormatter(logging.Formatter):
    """One JSON object on a line: `time` (ISO 8601, UTC), `level`, `logger`, `message`, `process`, and what the record has beside.

    Args:
        who: Which of several processes; empty if there is one.
    """

    def __init__(self, who: str = "") -> None:
        super().__init__()
        self._who = who

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        if self._who:
            said["worker"] = self._who
        said |= {key: value for key, value in extras_of(record).items() if key not in said}
        if record.exc_info and record.exc_info[0]:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False, default=str)


def extras_of(record: logging.LogRecord) -> dict[str, Any]:
    """What was given as `extra`: the job's id, its actor and queue, and such."""
    return {key: value for key, value in vars(record).items() if key not in _OWN and not key.startswith("_")}


def set_up(kind: LogFormat, level: str, *, who: str = "", stream: TextIO | None = None) -> None:
    """Let everything that is logged go to standard error; "none" leaves logging to the application."""
    if kind == "none":
        return
    stream = stream or sys.stderr
    formatter = JSONFormatter(who) if kind == "json" else TextFormatter(who, colour=stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)


def _plain(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
