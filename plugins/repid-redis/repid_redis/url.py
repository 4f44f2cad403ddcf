"""What a URL says: which servers, of what kind, which database, and who asks."""

from __future__ import annotations

from typing import Final, Literal, NoReturn
from urllib.parse import parse_qsl, unquote

from attrs import field, frozen

Mode = Literal["standalone", "sentinel", "cluster"]

_MODES: Final[dict[str, Mode]] = {"": "standalone", "unix": "standalone", "sentinel": "sentinel", "cluster": "cluster"}
_PORTS: Final[dict[Mode, int]] = {"standalone": 6379, "sentinel": 26379, "cluster": 6379}
_FORMS: Final = (
    "redis://[user[:password]@]host[:port][/database], redis+sentinel://host[:port],…/service[/database], "
    "redis+cluster://host[:port],…, redis+unix:///path[?db=database], and rediss for TLS"
)


@frozen
class Node:
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Node:
        """What `str` gives, back again; as servers write it, with or without brackets around an address with colons."""
        host, _, port = text.rpartition(":")
        return cls(host.removeprefix("[").removesuffix("]"), int(port))


@frozen
class RedisURL:
    """A URL, read.

    Attributes:
        mode: What the scheme says of the servers; the settings may say more.
        tls: Whether the scheme asks for encryption.
        nodes: Hosts and ports: of the server, of the sentinels, or of nodes of the cluster; none for a Unix socket.
        socket: The path of the Unix socket.
        service: What the sentinels call the server.
        db: The number of the database; None if it is not said.
        username: Who asks.
        password: And the password.
    """

    mode: Mode
    tls: bool = False
    nodes: tuple[Node, ...] = ()
    socket: str | None = None
    service: str | None = None
    db: int | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str, mode: Mode | None = None) -> RedisURL:
        """Read a URL.

        Args:
            url: What the user wrote.
            mode: What the settings say of the servers; None goes by the scheme.

        Raises:
            ValueError: It cannot be read. The text has neither user nor password: those may be what stands in the wrong place.
        """
        scheme, separator, rest = url.partition("://")
        tls, kind = _kind(scheme.lower() if separator else None)
        said = _MODES[kind]
        if kind and mode is not None and mode != said:
            raise ValueError(f"url: {scheme}:// contradicts mode={mode!r}: leave out one of the two")
        mode = mode or said
        rest, _, fragment = rest.partition("#")
        rest, _, query = rest.partition("?")
        if fragment:
            _unreadable("there is a '#'")
        authority, slash, path = rest.partition("/")
        userinfo, _, hosts = authority.rpartition("@")
        username, password = (unquote(part) or None for part in userinfo.partition(":")[::2])
        db = _db_of(query)
        if kind == "unix":
            if hosts or not path:
                raise ValueError("url: a Unix socket has a path, and no host: redis+unix:///run/redis.sock?db=0")
            return cls(mode, socket=unquote(slash + path), db=db, username=username, password=password)
        service, number = _service_and_db(path, mode)
        if number is not None and db is not None:
            _unreadable("it has the database twice, in the path and as db=")
        nodes = tuple(_node(host, _PORTS[mode]) for host in hosts.split(","))
        if mode == "standalone" and len(nodes) > 1:
            raise ValueError("url: there are several hosts: write redis+sentinel:// or redis+cluster://, as they are")
        db = number if db is None else db
        return cls(mode, tls, nodes, service=service, db=db, username=username, password=password)

    @property
    def address(self) -> str:
        """What errors call it."""
        if self.socket is not None:
            return self.socket
        return ",".join(map(str, self.nodes))


def masked(url: str) -> str:
    """The URL without its password, for people; also if it cannot be read."""
    scheme, separator, rest = url.partition("://")
    userinfo, at, hosts = rest.rpartition("@")  # the last one: it may stand in the password, unquoted
    username, colon, _ = userinfo.partition(":")
    return f"{scheme}{separator}{username}{colon}{'***' if colon else ''}{at}{hosts}"


def _kind(scheme: str | None) -> tuple[bool, str]:
    """Whether a scheme asks for TLS, and what it says of the servers."""
    if scheme is None:
        raise ValueError(f"url: it has no scheme: write {_FORMS}")
    base, _, kind = ("redis+unix" if scheme == "unix" else scheme).partition("+")
    if base not in {"redis", "rediss"} or kind not in _MODES or (base == "rediss" and kind == "unix") or scheme.endswith("+"):
        raise ValueError(f"url: the scheme {scheme!r} is not known here: write {_FORMS}")
    return base == "rediss", kind


def _service_and_db(path: str, mode: Mode) -> tuple[str | None, int | None]:
    parts = [unquote(part) for part in path.split("/") if part]
    service = None
    if mode == "sentinel" and parts and not (len(parts) == 1 and parts[0].isdecimal()):
        service = parts.pop(0)
    db = _number(parts.pop(0)) if parts else None
    if parts:
        _unreadable("the path has too many parts")
    return service, db


def _node(text: str, port: int) -> Node:
    host, number = text, ""
    if text.startswith("["):
        host, bracket, number = text[1:].partition("]")
        if not bracket or (number and not number.startswith(":")):
            _unreadable("an address in brackets does not end")
        number = number[1:]
    elif ":" in text:
        host, _, number = text.partition(":")
    if number and not (number.isdecimal() and number.isascii() and 0 < int(number) < 1 << 16):
        _unreadable("a port is no number from 1 to 65535")
    return Node(unquote(host) or "localhost", int(number) if number else port)


def _db_of(query: str) -> int | None:
    if "@" in query:
        _unreadable("there is a '?' before the '@'")
    found = dict(parse_qsl(query, keep_blank_values=True))
    db = found.pop("db", None)
    if found:
        names = ", ".join(sorted(found))
        raise ValueError(f"url: nothing is known of {names} in a URL: pass it as a setting, by name; only db=… may stand there")
    return None if db is None else _number(db)


def _number(text: str) -> int:
    if not (text.isdecimal() and text.isascii()):
        _unreadable("the database is no number")
    return int(text)


def _unreadable(why: str) -> NoReturn:
    raise ValueError(
        f"url: it cannot be read, {why}: write {_FORMS}; in user and password, write '/', '@', ':', '#' as %2F, %40, %3A, %23"
    )
