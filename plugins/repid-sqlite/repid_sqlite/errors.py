"""What goes wrong with a file, in words that say what to do."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

_REMEDIES: Final = {
    "SQLITE_BUSY": "another process holds its write lock: end that transaction, or raise busy_timeout",
    "SQLITE_LOCKED": "another process holds its write lock: end that transaction, or raise busy_timeout",
    "SQLITE_FULL": "the disk is full, or the file's max_page_count is reached: free space, or let workers drain its queues",
    "SQLITE_READONLY": "this process may not write it: it needs the right to write the file, its -wal and -shm, and their folder",
    "SQLITE_PERM": "this process may not write it: it needs the right to write the file, its -wal and -shm, and their folder",
    "SQLITE_CANTOPEN": "check that its folder is there, and that this process may read and write in it",
    "SQLITE_IOERR": "the disk fails, or it is on a network file system, where SQLite's WAL does not work: use a local disk",
    "SQLITE_NOTADB": "it is no SQLite database: name another file, or move this one away",
    "SQLITE_CORRUPT": "the database is damaged: restore it from a backup, or save what is left with sqlite3's .recover",
}


class UnusableFileError(Exception):
    """The file is a database, but none for this plugin; the text is the remedy."""


class LostSessionError(Exception):
    """Others have taken this process for dead."""


def explain(path: Path, error: Exception) -> str:
    """What to tell about a file that cannot be used."""
    if isinstance(error, UnusableFileError):
        return f"{path} cannot be used: {error}"
    name = "_".join((getattr(error, "sqlite_errorname", None) or "SQLITE_ERROR").split("_")[:2])
    return f"{path} cannot be used ({error}): {_REMEDIES.get(name, 'see the error of SQLite that caused this')}"


def passing(error: Exception) -> bool:
    """Whether nothing is wrong with what was asked, so that it may work later."""
    return isinstance(error, UnusableFileError) or (
        isinstance(error, sqlite3.OperationalError | sqlite3.DatabaseError)
        and not isinstance(error, sqlite3.IntegrityError | sqlite3.DataError | sqlite3.ProgrammingError)
    )
