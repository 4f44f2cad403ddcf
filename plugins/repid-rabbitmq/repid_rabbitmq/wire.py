"""Messages as RabbitMQ carries them: all that a worker needs in one header, and the payload as the body.

`docs/reference/wire-format.md` of repid-core describes the header, and the README the properties beside it.
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

_dumps: Final = json.JSONEncoder(separators=(",", ":")).encode


def encode(envelope: Envelope, message_id: str) -> bytes:
    """The properties of a message."""
    key = envelope.key
    return frames.properties(
        {HEADER: encode_header(envelope)},
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


def decode(props: frames.Properties, body: bytes) -> Envelope:
    """The message.

    Raises:
        CorruptMessageError: It was not written by repid, or is damaged.
        NewerFormatError: A newer repid wrote it.
    """
    header = props.headers.get(HEADER)
    if not isinstance(header, bytes):
        raise CorruptMessageError(f"the message has no header {HEADER!r}, so it was not written for repid")
    return decode_header(header, body)


def priority_of(props: frames.Properties, body: bytes) -> Priority:
    """How urgent the message is, whatever priority the server gives it."""
    try:
        return decode(props, body).key.priority
    except CodecError:
        return Priority.MEDIUM


def topic_of(props: frames.Properties, body: bytes) -> str | None:
    """Which actor the message is for; None if it does not say."""
    if props.topic:
        return props.topic
    try:
        return decode(props, body).key.topic
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
