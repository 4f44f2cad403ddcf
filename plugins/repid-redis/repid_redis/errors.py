"""What goes wrong with a server, in words that say what to do."""

from __future__ import annotations

import re
import socket
import ssl
from typing import Final

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ClusterError,
    InvalidResponse,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
)

_AFTER_MAX: Final = "max number of clients"
_SAID: Final = (  # what a text has in it, and what to do
    ("WRONGPASS", "the password, or the user, is wrong: correct the URL, or the settings username and password"),
    ("invalid username-password", "the password, or the user, is wrong: correct the URL, or the settings username and password"),
    ("invalid password", "the password is wrong: correct the URL, or the setting password"),
    ("NOAUTH", "the server wants a password: put it into the URL, redis://:password@host, or into the setting password"),
    ("Authentication required", "the server wants a password: put it into the URL, redis://:password@host, or into the setting"),
    ("without any password", "the server wants no password: leave it out of the URL"),
    (
        "DB index is out of range",
        "the server has no database of this number: correct the URL, or raise `databases` on the server",
    ),
    (_AFTER_MAX, "the server has as many clients as it allows: raise maxclients there"),
    ("MISCONF", "the server cannot save its data, and takes no writes: look at its log, and at the disk"),
    ("unknown command", "the server lacks a command: Redis 6.2 or Valkey 7.2 is the oldest that will do"),
    ("NOREPLICAS", "the server has fewer replicas than its min-replicas-to-write"),
    ("WRONGTYPE", "a key of repid's holds something else: another application uses this prefix; set another"),
    ("CROSSSLOT", "the server is a node of a cluster: begin the URL with redis+cluster://"),
    ("cluster support disabled", "the server is no cluster: begin the URL with redis://"),
)


def explain(error: BaseException, address: str) -> str:
    """What went wrong at `address`, and what to do about it. No secret is shown."""
    return f"Redis at {address}: {_explain(error)}"


def _explain(error: BaseException) -> str:  # noqa: C901, PLR0911, PLR0912 — one case after the other
    text = " ".join(re.sub(r"://[^@/\s]*@", "://", str(error)).split())
    causes = list(_causes(error))
    if isinstance(error, BusyLoadingError):
        return "it is loading its data, and takes no calls yet: try again in a while"
    if isinstance(error, OutOfMemoryError) or text.startswith("OOM"):
        return "its memory is full (maxmemory): workers go on, but nothing more can be added; raise maxmemory, or drain queues"
    if isinstance(error, ReadOnlyError):
        return "it is a replica, which takes no writes: name the primary, or let sentinels find it (redis+sentinel://)"
    if isinstance(error, MasterDownError | ClusterDownError):
        return f"it does not serve now ({text}): the cluster has lost a node, or a replica its primary"
    if isinstance(error, NoPermissionError):
        return (
            f"the user may not do this ({text}): grant it the keys of the prefix (~repid:*), its channels (&repid:*) and "
            "+@read +@write +@scripting +@pubsub +@connection +@blocking +info"
        )
    for said, remedy in _SAID:
        if said in text:
            return remedy
    if isinstance(error, AuthenticationError):
        return f"it refuses the login ({text}): correct the user and password"
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not trusted ({cause.verify_message}): name the authority's file in ssl_ca_certs, "
                "and the host as the certificate does"
            )
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed ({cause.reason}): is it a TLS port? use redis:// without TLS"
    if any(isinstance(cause, socket.gaierror) for cause in causes) or "Name or service not known" in text:
        return "the host's name is not known: correct the URL"
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes) or "refused" in text:
        return "nothing answers there (connection refused): start the server, or correct host and port"
    if isinstance(error, InvalidResponse) or "Protocol error" in text:
        return "what answers is no Redis server: correct host and port"
    if any(isinstance(cause, TimeoutError) for cause in causes) or "imeout" in text:
        return f"it does not answer in time{f' ({text})' if text else ''}: check that it runs, and what lies between"
    if any(isinstance(cause, ConnectionResetError) for cause in causes) or "closed by server" in text or "reset by peer" in text:
        return f"it closed the connection ({text}): is it a Redis server? does it want TLS (rediss://)?"
    if isinstance(error, ClusterError):
        return f"the cluster does not serve: {text}"
    return text or type(error).__name__


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
