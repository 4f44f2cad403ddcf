"""What a URL says: which servers, which virtual host, and who asks."""

from __future__ import annotations

from typing import Final, NoReturn
from urllib.parse import unquote

from attrs import field, frozen

_PORTS: Final = {"amqp": 5672, "amqps": 5671}
_FORM: Final = "amqp://[user[:password]@]host[:port][,host[:port]…][/vhost], and amqps for TLS"


@frozen
class Node:
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@frozen
class AMQPURL:
    """A URL, read.

    Attributes:
        tls: Whether the scheme asks for encryption.
        nodes: The servers; any of them will do.
        vhost: The virtual host.
        username: Who asks.
        password: And the password.
    """

    tls: bool
    nodes: tuple[Node, ...]
    vhost: str = "/"
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: object) -> AMQPURL:
        """Read a URL.

        Raises:
            ValueError: It is none; the text names it, without its password, and the form that it should have.
        """

        def wrong(why: str) -> NoReturn:
            raise ValueError(f"url={masked(text)}: {why}; the form is {_FORM}")

        if not isinstance(text, str) or "://" not in text:
            wrong("it is no URL")
        scheme, _, rest = text.partition("://")
        if scheme.lower() not in _PORTS:
            wrong(f"its scheme is {scheme!r}")
        if "#" in rest:
            wrong("it has a '#': write %23")
        rest, _, query = rest.partition("?")
        if query:
            wrong("what follows the '?' is not known: give settings by name")
        place, slash, path = rest.partition("/")
        if "/" in path:
            wrong("the virtual host has a '/': write %2F")
        who, _, hosts = place.rpartition("@")
        username, colon, password = who.partition(":")
        nodes = tuple(_node(host, _PORTS[scheme.lower()], wrong) for host in (hosts or "localhost").split(","))
        return cls(
            tls=scheme.lower() == "amqps",
            nodes=nodes,
            vhost=unquote(path) if slash and path else "/",
            username=unquote(username) or None,
            password=unquote(password) if colon else None,
        )


def _node(text: str, port: int, wrong: object) -> Node:
    host, digits = text, ""
    if text.startswith("["):
        host, _, after = text[1:].partition("]")
        digits = after.removeprefix(":")
    elif ":" in text:
        host, _, digits = text.rpartition(":")
    if not host or (digits and not (digits.isascii() and digits.isdigit() and 0 < int(digits) < 65_536)):
        wrong(f"{text!r} is no host with a port")  # type: ignore[operator]
    return Node(host, int(digits or port))


def masked(url: object) -> str:
    """The `repr` of a URL, with stars for the password."""
    if not isinstance(url, str):
        return f"<{type(url).__name__}>"
    scheme, colon, rest = url.partition("://")
    who, at, place = rest.rpartition("@")
    if at and ":" in who:
        who = f"{who.partition(':')[0]}:***"
    return repr(f"{scheme}{colon}{who}{at}{place}")
