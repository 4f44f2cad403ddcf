"""What goes wrong with a server, in words that say what to do."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from typing import Final

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    InvalidResponse,
    MasterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)

OLDEST: Final = "Redis 6.2 or Valkey 7.2"

_ErrorType = type[BaseException]

# What passes by itself, or once somebody has seen to the server; nothing is wrong with what was asked.
_PASSING: Final[tuple[tuple[_ErrorType | None, str, str], ...]] = (
    (BusyLoadingError, "is loading the dataset", "it is loading its data, and takes no calls yet: try again in a while"),
    (
        OutOfMemoryError,
        "OOM command not allowed",
        "its memory is full, so that nothing can be added: raise maxmemory, or let workers drain its queues",
    ),
    (
        ReadOnlyError,
        "READONLY",
        "it is a replica, which takes no writes: give the primary's host, or let sentinels find it (redis+sentinel://)",
    ),
    (MasterDownError, "MASTERDOWN", "it is a replica that has lost its primary: wait for the fail-over, or start the primary"),
    (
        ClusterDownError,
        "CLUSTERDOWN",
        "the cluster does not serve, as nodes are missing: start them, or wait for the fail-over; CLUSTER INFO says more",
    ),
    (TryAgainError, "TRYAGAIN", "the cluster is moving these keys: try again in a while"),
    (None, "MISCONF", "it cannot write to its disk, and takes no writes: see its log, and whether the disk is full"),
    (None, "NOREPLICAS", "it has fewer replicas than its min-replicas-to-write wants, and takes no writes: start them"),
    (None, "max number of clients", "it has as many clients as it allows: raise maxclients there, or connect less often"),
    (None, "BUSY Redis is busy running a script", "a script keeps it busy: end that with SCRIPT KILL"),
)

# What stays as it is until the settings, or the server, are corrected.
_LASTING: Final[tuple[tuple[_ErrorType | None, str, str], ...]] = (
    (
        None,
        "command 'SENTINEL'",
        "it is no sentinel: write redis://, or give the sentinels' hosts, whose port is 26379 as a rule",
    ),
    (
        None,
        "no sentinel names a primary",
        "see that the sentinels run, watch a server of this name, and take `sentinel_username` and `sentinel_password`",
    ),
    (None, "gives its slots to no node", "see that all its nodes run, and have met: CLUSTER INFO says more"),
    (None, "without any password", "it asks for no password: leave it out, or set one for the default user on the server"),
    (None, "no password is set", "it asks for no password: leave it out, or set one on the server"),
    (
        None,
        "Authentication required",
        "it asks for a password: write redis://:password@host, or redis://user:password@host, or set `password`",
    ),
    (
        None,
        "invalid username-password",
        "user or password is wrong, or the user is disabled: correct the URL, or `username` and `password`",
    ),
    (None, "invalid password", "the password is wrong: correct the URL, or `password`"),
    (None, "Invalid Username or Password", "user or password is wrong: correct the URL, or `username` and `password`"),
    (None, "DENIED Redis is running in protected mode", "it is in protected mode: give it a password, and connect with it"),
    (None, "DB index", "it has no database of this number: give a smaller one in the URL, or raise `databases` on the server"),
    (None, "SELECT is not allowed in cluster mode", "it is a node of a cluster: write redis+cluster://, without a database"),
    (MovedError, "MOVED", "it is a node of a cluster: write redis+cluster://"),
    (ClusterCrossSlotError, "CROSSSLOT", "it is a node of a cluster: write redis+cluster://"),
    (None, "cluster support disabled", "it is no node of a cluster: write redis://"),
    (None, "nknown command", f"it lacks a command: {OLDEST} is the oldest that will do, and it must be no sentinel"),
    (None, "nknown Redis command", f"it lacks a command: {OLDEST} is the oldest that will do"),
    (None, "it knows no HELLO", f"it lacks a command: {OLDEST} is the oldest that will do"),
    (None, "WRONGTYPE", "a key that begins with the prefix is not repid's: give another `prefix`"),
    (None, "invalid bulk length", "it takes no string as large as this: lower `max_payload`, or raise proto-max-bulk-len there"),
)
# What an ACL user has to have. INFO is dangerous, for the server, and so is FLUSHALL, which no pattern of keys holds back.
RIGHTS: Final = "~PREFIX:* +@read +@write +@scripting +@blocking +@connection -@dangerous +info +time +wait"
_MORE_RIGHTS: Final = "+role with Sentinel, +cluster|slots in a cluster"


def explain(error: BaseException, address: str) -> str:
    """What went wrong, and what to do about it, without secrets.

    Args:
        error: What redis-py or the system raised, with its causes.
        address: Hosts and ports, or what else tells a user which server it is.
    """
    return f"Redis at {address}: {_explain(error)}"


def passes(error: BaseException) -> bool:
    """Whether the server is only unable to do now what it was asked, so that it may be asked again later."""
    return any(_among(_PASSING, cause, _text(cause)) for cause in _causes(error))


def _explain(error: BaseException) -> str:
    causes = list(_causes(error))
    for cause in causes:
        text = _text(cause)
        if isinstance(cause, NoPermissionError) or "NOPERM" in text or "The user executing the script" in text:
            return f"the user may not do this ({text}): give it, on the server, {RIGHTS}, {_MORE_RIGHTS}"
        if remedy := _among(_PASSING, cause, text) or _among(_LASTING, cause, text):
            return f"{remedy} ({text})" if text else remedy
        if isinstance(cause, AuthenticationError):
            return f"it refuses the login ({text}): correct the URL, or `username` and `password`"
        if isinstance(cause, InvalidResponse):
            return f"what answers there is no Redis server: correct host and port ({text})"
    return _unreachable(error, causes)


def _unreachable(error: BaseException, causes: list[BaseException]) -> str:  # noqa: PLR0911 — one case after the other
    """The network's and the system's part."""
    text = _text(error)
    for cause in causes:
        if isinstance(cause, ssl.SSLError):
            return _insecure(cause)
        if isinstance(cause, FileNotFoundError):
            return f"there is no such file ({text}): correct the path, of the socket or of the certificate"
        if isinstance(cause, PermissionError):
            return f"the system does not allow it ({text}): see who may use the socket or the file, and firewalls"
        if isinstance(cause, socket.gaierror):
            return f"its host's name cannot be resolved ({text}): correct the URL, or the name service"
        if isinstance(cause, ConnectionRefusedError) or "Connect call failed" in _text(cause):
            return f"nothing accepts connections there ({text}): start the server, or correct host and port"
        if isinstance(cause, ConnectionResetError) or "closed by server" in _text(cause):
            return (
                f"it closed the connection ({text}): see that it is a Redis server, and whether it wants TLS (rediss://), "
                "or a certificate of this client (ssl_certfile)"
            )
    if any(isinstance(cause, TimeoutError) or "no reply within" in _text(cause) for cause in causes):
        shown = f" ({text})" if text else ""
        remedy = "see that it runs, and host and port; one that has no TLS is silent to rediss://"
        return f"it does not answer in time{shown}: {remedy}"
    return f"{text or type(error).__name__}: see that it runs, and that the URL is right"


def _insecure(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({error.verify_message}): name the file of its authority in ssl_ca_certs, "
            "and write the host as the certificate does"
        )
    reason = error.reason or str(error)
    if "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
        return f"it wants a certificate of this client ({reason}): give ssl_certfile and ssl_keyfile"
    if "WRONG_VERSION_NUMBER" in reason or "RECORD_LAYER" in reason:
        return f"it does not speak TLS there ({reason}): write redis:// without the second s, or give its TLS port"
    return f"TLS fails ({reason}): see ssl_ca_certs, ssl_certfile and ssl_keyfile, and that the server speaks TLS there"


def _among(known: tuple[tuple[_ErrorType | None, str, str], ...], error: BaseException, text: str) -> str | None:
    for kind, said, remedy in known:
        if (kind is not None and isinstance(error, kind)) or said in text:
            return remedy
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it comes from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _text(error: BaseException) -> str:
    """What the error says, in one line, without passwords of URLs, and without arguments, which servers repeat."""
    text = re.sub(r",? with args beginning with:.*", "", str(error), flags=re.DOTALL)
    return " ".join(re.sub(r"://[^@\s]*@", "://", text).split())
