"""What a connection is made of, in words, without secrets."""

from __future__ import annotations

from repid_core.abc import Broker
from repid_core.connection import Connection
from repid_core.settings import masked


def parts(connection: Connection) -> dict[str, Broker]:
    """The brokers, by what they are for; one that is for two things is there twice."""
    brokers = {
        "messages": connection.message_broker,
        "arguments": connection.args_bucket_broker,
        "results": connection.results_bucket_broker,
    }
    return {role: broker for role, broker in brokers.items() if broker is not None}


def described(broker: Broker) -> str:
    """A broker's class, and where its store is, if it says so."""
    where = getattr(getattr(broker, "settings", None), "url", None)
    return f"{type(broker).__name__} {masked(where)}" if isinstance(where, str) else type(broker).__name__


def backends(connection: Connection) -> dict[str, str]:
    """Each part in words; what is missing is "none"."""
    found = {role: described(broker) for role, broker in parts(connection).items()}
    return {role: found.get(role, "none") for role in ("messages", "arguments", "results")}
