"""Messages as RabbitMQ carries them: the payload as the body, and the rest in properties and one header.

`docs/reference/wire-format.md` of repid-core describes the header, and the README the properties beside it. What properties
say, the header does not repeat: a queue of RabbitMQ 3.10 took a quarter more messages a second when none of a message's texts
had 64 bytes or more, which Erlang keeps apart from the process that has them.
"""

from __future__ import annotations

import json
from typing import Final

from repid_core.codec import death_fields, death_from_fields, decode_header, encode_header
from repid_core.data import Death, Envelope, Priority
from repid_core.errors import CodecError, CorruptMessageError
from repid_rabbitmq import frames
from repid_rabbitmq.topology import PRIORITIES

HEADER: Final = "repid"
DEATH: Final = "repid-death"
BOUNCES: Final = "repid-bounces"
RETURNED: Final = "repid-returned"

NOTHING: Final = frames.Properties({})

_SHORT: Final = 255  # bytes of a short string of AMQP; a character is up to four
_PRIORITIES: Final = {level: int(priority) for priority, level in PRIORITIES.items()}

_dumps: Final = json.JSONEncoder(separators=(",", ":")).encode


def encode(envelope: Envelope, message_id: str) -> bytes:
    """The properties of a message."""
    key = envelope.key
    return frames.properties(
        {HEADER: encode_header(envelope, bare=len(key.id_) <= _SHORT and len(envelope.content_type) <= _SHORT // 4)},
        content_type=envelope.content_type,
        priority=PRIORITIES[key.priority],
        correlation_id=key.id_,
        message_id=message_id,
        timestamp=int(envelope.parameters.timestamp.timestamp()),
        topic=key.topic,
    )


def again(props: frames.Properties, message_id: str, priority: int, **headers: bytes) -> bytes:
    """The properties of a message that is published again as it is, with these headers beside its own."""
    own = props.headers.get(HEADER)
    return frames.properties(
        {**({HEADER: own} if isinstance(own, bytes) else {}), **{name.replace("_", "-"): text for name, text in headers.items()}},
        content_type=props.content_type,
        priority=priority,
        correlation_id=props.correlation_id,
        message_id=message_id,
        timestamp=props.timestamp,
        topic=props.topic,
    )


def decode(props: frames.Properties, body: bytes, queue: str) -> Envelope:
    """The message, in the queue that it was found in.

    Raises:
        CorruptMessageError: It was not written by repid, or is damaged.
        NewerFormatError: A newer repid wrote it.
    """
    header = props.headers.get(HEADER)
    if not isinstance(header, bytes):
        raise CorruptMessageError(f"the message has no header {HEADER!r}, so it was not written for repid")
    beside = {
        "id": props.correlation_id,
        "topic": props.topic,
        "queue": queue,
        "priority": _priority(props),
        "content_type": props.content_type,
    }
    return decode_header(header, body, beside)


def _priority(props: frames.Properties) -> int | None:
    if props.priority in _PRIORITIES:
        return _PRIORITIES[props.priority]
    returned = props.headers.get(RETURNED)  # it has come back, to go before all others
    return _PRIORITIES.get(int(returned)) if isinstance(returned, bytes) and returned in (b"0", b"1", b"2") else None


def priority_of(props: frames.Properties, body: bytes, queue: str) -> Priority:
    """How urgent the message is, whatever priority the server gives it."""
    try:
        return decode(props, body, queue).key.priority
    except CodecError:
        return Priority.MEDIUM


def topic_of(props: frames.Properties, body: bytes, queue: str) -> str | None:
    """Which actor the message is for; None if it does not say."""
    if props.topic:
        return props.topic
    try:
        return decode(props, body, queue).key.topic
    except CodecError:
        return None


def encode_death(death: Death) -> bytes:
    """The value of the header that says how a message died."""
    return _dumps(death_fields(death)).encode()


def death_of(props: frames.Properties) -> Death | None:
    """How the message died; None if it does not say."""
    header = props.headers.get(DEATH)
    try:
        return death_from_fields(json.loads(header)) if isinstance(header, bytes) else None
    except (ValueError, CodecError):
        return None


def bounces_of(props: frames.Properties) -> int:
    """How often the message was sent round because its actor was not there."""
    header = props.headers.get(BOUNCES)
    return int(header) if isinstance(header, bytes) and header.isdigit() and len(header) < 9 else 0
