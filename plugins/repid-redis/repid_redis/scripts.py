"""The Lua scripts: every way of a message from one place to another is one of them, and so happens wholly or not at all.

What a script begins with are fragments that several share; `lua/base.lua` says what is kept under which key.
"""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files
from typing import Final

from attrs import field, frozen

_LUA = files(__package__) / "lua"


@frozen(eq=False)
class Source:
    """What a server is asked to run: a text, and the hash by which it knows it from the second time on."""

    text: str = field(repr=False)
    sha: str


@frozen(eq=False)
class Script:
    """One step of a queue.

    Attributes:
        name: What it does.
        plain: For servers before Redis 7, and for what is to be refused when the memory is full.
        when_full: For all other steps: it goes on when the memory is full.
    """

    name: str
    plain: Source
    when_full: Source


def _script(name: str, *fragments: str, grows: bool = False) -> Script:
    text = "\n".join((_LUA / f"{part}.lua").read_text() for part in (*fragments, name))
    plain = _source(text)
    return Script(name, plain, plain if grows else _source(f"#!lua flags=allow-oom\n{text}"))


def _source(text: str) -> Source:
    return Source(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


ENQUEUE: Final = _script("enqueue", "base", "place", "state", grows=True)
HELLO: Final = _script("hello", "base")
FETCH: Final = _script("fetch", "base", "due")
FETCH_OTHER: Final = _script("fetch_other", "base", "due", "state", "bury")
ACK: Final = _script("ack", "base")
NACK: Final = _script("nack", "base", "bury")
REJECT: Final = _script("reject", "base", "release")
REQUEUE: Final = _script("requeue", "base", "place", "state")
MARK: Final = _script("mark", "base")
BEAT: Final = _script("beat", "base", "due", "bury", "release")
TICK: Final = _script("tick", "base", "due")
SYNC: Final = _script("sync", "base", "release")
BYE: Final = _script("bye", "base", "release")
STATS: Final = _script("stats", "base")
CANCEL: Final = _script("cancel", "base", "state")
BROWSE_READY: Final = _script("browse_ready", "base")
BROWSE_OTHER: Final = _script("browse_other", "base")
FLUSH: Final = _script("flush", "base")
DELETE: Final = _script("delete", "base")
