"""The tables, and how a file becomes one of ours.

A message is one row from its enqueue to its end. `state` says where it is, or, while a consumer holds it, where it came from;
`place` orders it there: a number that grows within the queue for ready and dead ones, the due time in microseconds for delayed
ones. `rank` is 9 less the priority. `holder` is a session and the number of a consumer in it (`repid_sqlite.sessions`).

SQLite uses a partial index only where a query repeats the index's condition, word for word, which no `?` does.
"""

from __future__ import annotations

import sqlite3
import time
from typing import Final

from repid_sqlite.errors import UnusableFileError
from repid_sqlite.settings import FileSettings

VERSION: Final = 1
APPLICATION: Final = 0x72657064  # "repd", in the file's header
OLDEST: Final = (3, 35, 0)  # RETURNING

READY, DELAYED, DEAD = 0, 1, 2

_TABLES: Final = """
CREATE TABLE queues (queue INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, tail INTEGER NOT NULL);
CREATE TABLE lanes (
    lane INTEGER PRIMARY KEY AUTOINCREMENT, queue INTEGER NOT NULL, topic TEXT NOT NULL, UNIQUE (queue, topic)
);
CREATE TABLE messages (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    queue INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    state INTEGER NOT NULL,
    place INTEGER NOT NULL,
    holder INTEGER,
    deaths INTEGER NOT NULL DEFAULT 0,
    redelivered INTEGER NOT NULL DEFAULT 0,
    marked INTEGER NOT NULL DEFAULT 0,
    id TEXT NOT NULL,
    death TEXT,
    frame BLOB NOT NULL
);
CREATE UNIQUE INDEX live ON messages (queue, id) WHERE state < 2;
CREATE INDEX waiting ON messages (lane, rank, place) WHERE state = 0 AND holder IS NULL;
CREATE INDEX delayed ON messages (queue, place) WHERE state = 1 AND holder IS NULL;
CREATE INDEX dead ON messages (queue, place) WHERE state = 2 AND holder IS NULL;
CREATE INDEX held ON messages (holder, queue) WHERE holder IS NOT NULL;
CREATE TABLE sessions (
    session INTEGER PRIMARY KEY AUTOINCREMENT,
    pid INTEGER NOT NULL,
    address TEXT,
    lease INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    most INTEGER NOT NULL
);
CREATE TABLE listeners (channel TEXT NOT NULL, session INTEGER NOT NULL, PRIMARY KEY (channel, session)) WITHOUT ROWID;
CREATE TABLE buckets (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, expires INTEGER, data BLOB NOT NULL);
CREATE INDEX expiring ON buckets (expires) WHERE expires IS NOT NULL;
"""


def open_file(settings: FileSettings) -> sqlite3.Connection:
    """Open the file, and make its tables if it is new.

    Raises:
        UnusableFileError: It is another program's database, or that of a newer version.
        sqlite3.Error: It cannot be opened, read or written.
    """
    if sqlite3.sqlite_version_info < OLDEST:
        raise UnusableFileError(
            f"Python is built with SQLite {sqlite3.sqlite_version}, and this needs {'.'.join(map(str, OLDEST[:2]))} or newer"
        )
    patience = settings.busy_timeout.total_seconds()
    db = sqlite3.connect(settings.path, timeout=patience, isolation_level=None, cached_statements=256)
    try:
        db.execute("BEGIN")  # so that all that is looked at is of one moment: another process may be making it ours
        new = not _is_ours(db)  # looked at before anything is changed in it
        db.execute("COMMIT")
        if new:
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        _use_wal(db, patience)
        db.execute(f"PRAGMA synchronous = {settings.durability}")
        db.execute("PRAGMA journal_size_limit = 67108864")
        if new:
            db.execute("BEGIN IMMEDIATE")
            if not _is_ours(db):  # nor has another process made it ours meanwhile
                _make_tables(db)
            db.execute("COMMIT")
    except BaseException:
        db.close()
        raise
    return db


def _use_wal(db: sqlite3.Connection, patience: float) -> None:
    deadline, mode = time.monotonic() + patience, ""
    while True:
        try:
            [mode] = db.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:  # SQLite does not wait here for another process that does the same
            if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
            continue
        break
    if mode != "wal":
        raise UnusableFileError("its file system cannot share memory, as network file systems cannot: use a local disk")


def _is_ours(db: sqlite3.Connection) -> bool:
    """Whether it has our tables; False if it is empty."""
    [application] = db.execute("PRAGMA application_id").fetchone()
    [version] = db.execute("PRAGMA user_version").fetchone()
    if application == APPLICATION:
        if version > VERSION:
            raise UnusableFileError(
                f"a newer repid-sqlite wrote it, with schema {version}, and this one knows {VERSION}: upgrade repid-sqlite"
            )
        return True
    if application or version or db.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise UnusableFileError("it is the database of another program: name a file of its own for repid")
    return False


def _make_tables(db: sqlite3.Connection) -> None:
    for statement in _TABLES.split(";"):  # `executescript` would end the transaction
        db.execute(statement)
    db.execute(f"PRAGMA application_id = {APPLICATION}")
    db.execute(f"PRAGMA user_version = {VERSION}")
