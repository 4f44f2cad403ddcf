"""What goes wrong with a server, in words that say what to do."""

from __future__ import annotations

import re
import socket
import ssl
from typing import Final

from repid_rabbitmq.link import ChannelClosedError, ForeignError, RefusedError

# What the server says, and what it means. The first that fits counts.
_SAID: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), remedy)
    for pattern, remedy in (
        (
            r"inequivalent arg",
            (
                "it was made with other settings, perhaps of another queue_type: set what the server has, choose another "
                "prefix, or, once it is empty, delete it there and let it be made anew. Nothing was changed"
            ),
        ),
        (
            r"Login was refused|AUTHENTICATION",
            (
                "user or password is wrong, or the user may not come from this host, as guest may only from the server's own: "
                "correct the URL, or `username` and `password`"
            ),
        ),
        (r"vhost .* not found", "make it with rabbitmqctl add_vhost, or correct the URL, where a '/' in its name is %2F"),
        (
            r"access to vhost .* refused|refused for user",
            (
                "the user lacks a right: grant it with rabbitmqctl set_permissions -p VHOST USER CONFIGURE WRITE READ; all "
                "names begin with the prefix"
            ),
        ),
        (r"vhost .* is down|vhost .* not available", "its data cannot be read now: see the server's log"),
        (r"message size .* larger than", "lower max_payload to what the server takes, or raise max_message_size there"),
        (
            r"delivery acknowledgement on channel .* timed out|delivery acknowledg\w+ timed out",
            (
                "a job ran for longer than the server waits: raise consumer_timeout there, or, from RabbitMQ 3.12 on, in the "
                "settings"
            ),
        ),
        (r"home node .* (down|inaccessible)", "start that node, or choose quorum queues, which live on several"),
        (r"no (queue|exchange) '", "it is missing: let declare be True, or make it"),
        (r"CONNECTION_FORCED", "an operator closed the connection, or the server is stopping"),
        (r"connection limit|number of connections", "it has as many connections as it allows: raise the limit there"),
        (r"RESOURCE_LOCKED", "another connection has it for itself"),
        (r"INTERNAL_ERROR", "see its log"),
    )
)


def explain(error: BaseException | None, address: str) -> str:
    """One sentence about what went wrong, and one about what to do."""
    if error is None:
        return f"RabbitMQ at {address} cannot be reached"
    cause = error.__cause__ if not str(error) and error.__cause__ is not None else error
    if isinstance(cause, RefusedError | ChannelClosedError):
        remedy = next((remedy for pattern, remedy in _SAID if pattern.search(cause.text)), None)
        return f"RabbitMQ at {address} said {cause}{f': {remedy}' if remedy else ''}"
    if isinstance(cause, ForeignError):
        return f"{address}: {cause}. RabbitMQ's port for AMQP is 5672, and 5671 with TLS"
    return f"RabbitMQ at {address} cannot be reached: {_of_the_network(cause)}"


def _of_the_network(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message}): give ssl_ca_certs"
    if isinstance(error, ssl.SSLError):
        return (
            f"TLS failed ({error.reason or error}): see that the port is the one for amqps, and whether it asks for a certificate"
        )
    if isinstance(error, socket.gaierror):
        return f"the host's name is not known ({error.strerror}): correct the URL"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there: start the server, or correct the URL"
    if isinstance(error, TimeoutError):
        return f"{error or 'it does not answer'}: see that the server runs, and that no firewall is between"
    return str(error) or type(error).__name__
