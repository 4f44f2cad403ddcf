"""Unix sockets between the sessions of a file. They carry wake-ups, and their end tells of a death.

Each session listens on a socket. One that joins connects to all that are there, so each two have one link, which either uses. A
wake-up is eight bytes (`transaction.key_of`). The system closes the sockets of a process that dies, however it dies; and if then
nobody listens at its address any more, it is dead.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import selectors
import socket
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import define, field

_LONGEST_ADDRESS: Final = 100  # bytes; systems take from 104 on
_BACKLOG: Final = 64  # bytes on their way to a session that does not read; what is beyond is left to its polling
_KEY: Final = 8

_alive: weakref.WeakSet[Links] = weakref.WeakSet()


@define(eq=False)
class _Link:
    """One socket, and the session at its other end, 0 until that has said who it is."""

    socket: socket.socket
    session: int = 0
    received: bytearray = field(factory=bytearray)
    unsent: bytearray = field(factory=bytearray)


class Links:
    """The sockets of one session, used by its thread alone, but for `wake`.

    Args:
        path: The database.

    Attributes:
        address: Where this session listens; None where it cannot.
        lost: Sessions whose link has ended since this was looked at last.
    """

    def __init__(self, path: Path) -> None:
        self.lost = set[int]()
        self._links: dict[int, _Link] = {}
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._listener: socket.socket | None = None
        self.address: str | None = None
        self.listen(path)
        _alive.add(self)

    def listen(self, path: Path) -> None:
        """Listen at a new address; others may have removed the old one, with the session that had it."""
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
        self.address = None
        for address in _addresses(path) if hasattr(socket, "AF_UNIX") else ():
            listener = socket.socket(socket.AF_UNIX)
            try:
                listener.bind(address)
                listener.listen(128)
            except OSError:  # the file system has no sockets, or we may not make any
                listener.close()
                continue
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)
            self._listener, self.address = listener, address
            return

    def wake(self) -> None:
        """End a `wait`, from any thread."""
        with suppress(OSError):  # full: it wakes anyway; closed: there is nobody
            self._waker.send(b"\0")

    def greet(self, session: int, address: str, me: int) -> bool:
        """Make a link to another session; False if nobody listens there any more."""
        peer = socket.socket(socket.AF_UNIX)
        peer.setblocking(False)
        try:
            peer.connect(address)
        except ConnectionRefusedError:
            peer.close()
            return False
        except OSError:  # it has its hands full, or is not ours to reach: polling and leases will do
            peer.close()
            return True
        self._drop(session)
        link = self._links[session] = _Link(peer, session)
        self._selector.register(peer, selectors.EVENT_READ, link)
        self._send(link, me.to_bytes(_KEY, "big"))
        return True

    def send(self, session: int, key: bytes) -> None:
        """Wake another session for what has this key; without a link to it, it will notice by itself."""
        link = self._links.get(session)
        if link is not None and len(link.unsent) < _BACKLOG << 10:
            self._send(link, key)

    def wait(self, seconds: float) -> set[bytes]:
        """Wait for wake-ups, for at most so long; their keys."""
        keys = set[bytes]()
        for selected, events in self._selector.select(max(0.0, seconds)):
            if selected.fileobj is self._woken:
                with suppress(BlockingIOError):
                    self._woken.recv(4096)
            elif selected.fileobj is self._listener:
                self._accept()
            elif events & selectors.EVENT_WRITE:
                self._send(selected.data, b"")
            else:
                keys |= self._receive(selected.data)
        return keys

    def close(self, *, remove: bool = True) -> None:
        """Close all; a session that ends as it should removes its address, too."""
        _alive.discard(self)
        for closing in self._sockets():
            closing.close()
        self._selector.close()
        if remove and self.address is not None:
            self.remove(self.address)

    @staticmethod
    def remove(address: str) -> None:
        """Remove the address of a session that is over."""
        with suppress(OSError):
            Path(address).unlink()

    def forsake(self) -> None:
        """In a forked child: close what would keep others from noticing the parent's death."""
        for closing in self._sockets():
            with suppress(OSError):
                closing.close()

    def _sockets(self) -> list[socket.socket]:
        pending = [key.fileobj for key in self._selector.get_map().values()] if self._selector.get_map() else []
        return [self._waker, *(item for item in pending if isinstance(item, socket.socket))]

    def _accept(self) -> None:
        assert self._listener is not None  # noqa: S101 — it was selected
        with suppress(OSError):
            peer, _ = self._listener.accept()
            peer.setblocking(False)
            self._selector.register(peer, selectors.EVENT_READ, _Link(peer))

    def _receive(self, link: _Link) -> set[bytes]:
        try:
            data = link.socket.recv(65536)
        except BlockingIOError:
            return set()
        except OSError:
            data = b""
        if not data:
            self._end(link)
            return set()
        link.received += data
        whole = len(link.received) // _KEY * _KEY
        keys = [bytes(link.received[start : start + _KEY]) for start in range(0, whole, _KEY)]
        del link.received[:whole]
        if keys and not link.session:
            link.session = int.from_bytes(keys.pop(0), "big")
            self._drop(link.session)
            self._links[link.session] = link
        return set(keys)

    def _send(self, link: _Link, data: bytes) -> None:
        link.unsent += data
        try:
            sent = link.socket.send(link.unsent)
            del link.unsent[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._end(link)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.unsent else 0)
        if self._selector.get_key(link.socket).events != events:
            self._selector.modify(link.socket, events, link)

    def _end(self, link: _Link) -> None:
        with suppress(KeyError):
            self._selector.unregister(link.socket)
        link.socket.close()
        if self._links.get(link.session) is link:
            del self._links[link.session]
            self.lost.add(link.session)

    def _drop(self, session: int) -> None:
        """Close an older link to the same session."""
        link = self._links.pop(session, None)
        if link is not None:
            self._end(link)


def _addresses(path: Path) -> list[str]:
    """Where to listen: beside the file, or, as addresses are short, in the folder for what is temporary."""
    name = secrets.token_hex(4)
    beside = f"{path.absolute()}-{name}.sock"
    folder = hashlib.blake2b(str(path.absolute()).encode(), digest_size=6).hexdigest()
    elsewhere = str(Path(tempfile.gettempdir()) / f"repid-{folder}-{name}.sock")
    return [address for address in (beside, elsewhere) if len(os.fsencode(address)) <= _LONGEST_ADDRESS]


def _after_fork() -> None:
    for links in list(_alive):
        links.forsake()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
