"""The frames of AMQP 0-9-1 that every message takes, written and read by hand; for all others there is pamqp.

What a method's arguments and a message's properties look like is in the specification's sections 2.3.5 and 4.2.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
END: Final = 0xCE
DELIVER, RETURN, ACK, NACK = (60, 60), (60, 50), (60, 80), (60, 120)

HEAD: Final = struct.Struct(">BHI")  # kind, channel, size
IDS: Final = struct.Struct(">HH")  # class and method
TAG: Final = struct.Struct(">QB")  # delivery tag, and bits
_ACK: Final = struct.Struct(">BHIHHQBB")
_CONTENT: Final = struct.Struct(">HHQH")  # class, weight, size of the body, flags
_SHORT, _LONG, _STAMP = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")

# What a message of ours has: content type, headers, delivery mode, priority, correlation id, message id, timestamp, type.
_FLAGS: Final = 1 << 15 | 1 << 13 | 1 << 12 | 1 << 11 | 1 << 10 | 1 << 7 | 1 << 6 | 1 << 5
_PERSISTENT: Final = 2
_FRAME: Final = 8  # bytes of a frame beside what it carries
_SIZES: Final = {
    b: n for n, letters in ((1, b"tbB"), (2, b"sUu"), (4, b"Iif"), (8, b"lLdT"), (5, b"D"), (0, b"V")) for b in letters
}
_NUMBERS: Final = {b: (size, b in b"bsIl") for size, letters in ((1, b"bB"), (2, b"su"), (4, b"Ii"), (8, b"lL")) for b in letters}


def acked(channel: int, tag: int, *, multiple: bool) -> bytes:
    """Acknowledge a delivery, or all up to it."""
    return _ACK.pack(METHOD, channel, 13, *ACK, tag, multiple, END)


def given_back(channel: int, tag: int) -> bytes:
    """Have the server put a delivery back where it came from.

    This is `basic.nack`: from RabbitMQ 4.3 on, `basic.reject` counts as a failure of the message.
    """
    return _ACK.pack(METHOD, channel, 13, *NACK, tag, 2, END)


def _short(text: bytes) -> bytes:
    return b"%c%b" % (len(text), text)


@lru_cache(4096)
def _named(text: str) -> bytes:
    """What many messages have in common, cut to what fits."""
    return _short(text.encode()[:255].decode(errors="ignore").encode())


@lru_cache(4096)
def route(exchange: str, key: str) -> bytes:
    """`basic.publish` to an exchange, mandatory: what no queue takes comes back."""
    return IDS.pack(60, 40) + b"\0\0" + _short(exchange.encode()) + _short(key.encode()) + b"\1"


def properties(
    headers: Mapping[str, bytes],
    *,
    content_type: str,
    priority: int,
    correlation_id: str,
    message_id: str,
    timestamp: int,
    topic: str,
) -> bytes:
    """The properties of a persistent message.

    Args:
        headers: Texts by name.
        content_type: Of the body.
        priority: 0 to 2.
        correlation_id: The job's id; cut to what fits.
        message_id: Of this publishing.
        timestamp: Seconds since the epoch.
        topic: What goes into `type`.
    """
    table = b""
    for name, value in headers.items():
        table += b"%bS%b%b" % (_named(name), _LONG.pack(len(value)), value)
    job = correlation_id.encode()[:255]
    return b"%b%b%b%c%c%c%b%c%b%b%b" % (
        *(_named(content_type), _LONG.pack(len(table)), table, _PERSISTENT, priority, len(job), job),
        *(len(message_id), message_id.encode(), _STAMP.pack(max(0, timestamp)), _named(topic)),
    )


def published(channel: int, way: bytes, props: bytes, body: bytes, frame_max: int) -> bytes:
    """One message as frames: the method, the properties, and as many of the body as it takes."""
    most, size = frame_max - _FRAME, len(body)
    head = b"%b%b\xce%b%b%b\xce" % (
        *(HEAD.pack(METHOD, channel, len(way)), way),
        *(HEAD.pack(HEADER, channel, _CONTENT.size + len(props)), _CONTENT.pack(60, 0, size, _FLAGS), props),
    )
    if not size:
        return head
    if size <= most:
        return b"%b%b%b\xce" % (head, HEAD.pack(BODY, channel, size), body)
    parts = [head]
    for start in range(0, size, most):
        part = body[start : start + most]
        parts += HEAD.pack(BODY, channel, len(part)), part, b"\xce"
    return b"".join(parts)


class Properties(NamedTuple):
    """What a message says of itself, as far as it matters here.

    Attributes:
        headers: Texts as bytes, and whole numbers, by name; others are left out.
        content_type: Of the body.
        priority: As the server sorts by it.
        correlation_id: The job's id, as a rule.
        message_id: Of this publishing.
        timestamp: Seconds since the epoch.
        topic: The property `type`.
    """

    headers: Mapping[str, bytes | int]
    content_type: str = ""
    priority: int = 0
    correlation_id: str = ""
    message_id: str = ""
    timestamp: int = 0
    topic: str = ""


def body_size(content: bytes) -> int:
    """The length of the body that a header frame announces."""
    size: int = _CONTENT.unpack_from(content)[2]
    return size


def read(content: bytes) -> Properties:
    """The properties in a header frame.

    Raises:
        ValueError, IndexError, struct.error: It is not what the specification says.
    """
    flags, position = _CONTENT.unpack_from(content)[3], _CONTENT.size
    if flags == _FLAGS:
        return _ours(content)
    texts = {}
    headers: dict[str, bytes | int] = {}
    priority = timestamp = 0
    for bit in range(15, 4, -1):
        if not flags >> bit & 1:
            continue
        if bit == 13:
            end = position + 4 + _LONG.unpack_from(content, position)[0]
            headers = _table(content, position + 4, end)
            position = end
        elif bit == 12:
            position += 1
        elif bit == 11:
            priority = content[position]
            position += 1
        elif bit == 6:
            timestamp = _STAMP.unpack_from(content, position)[0]
            position += 8
        else:
            end = position + 1 + content[position]
            texts[bit] = content[position + 1 : end].decode()
            position = end
    return Properties(headers, texts.get(15, ""), priority, texts.get(10, ""), texts.get(7, ""), timestamp, texts.get(5, ""))


def _ours(content: bytes) -> Properties:
    """The same, when they are those of a message of ours."""
    end = 15 + content[14]
    content_type = content[15:end]
    start, end = end + 4, end + 4 + _LONG.unpack_from(content, end)[0]
    headers = _table(content, start, end)
    priority = content[end + 1]
    start, end = end + 3, end + 3 + content[end + 2]
    correlation_id = content[start:end]
    start, end = end + 1, end + 1 + content[end]
    message_id = content[start:end]
    start = end + 9
    topic = content[start : start + content[start - 1]]
    return Properties(
        *(headers, content_type.decode(), priority, correlation_id.decode(), message_id.decode()),
        *(_STAMP.unpack_from(content, end)[0], topic.decode()),
    )


def _table(data: bytes, position: int, end: int) -> dict[str, bytes | int]:
    found: dict[str, bytes | int] = {}
    while position < end:
        start = position + 1 + data[position]
        name, kind = data[position + 1 : start].decode(), data[start]
        position = start + 1
        size = _SIZES.get(kind)
        if size is None:  # texts, arrays, tables and bytes say their length
            size = _LONG.unpack_from(data, position)[0]
            position += 4
            if kind in b"Sx":
                found[name] = data[position : position + size]
        elif kind in _NUMBERS:
            width, signed = _NUMBERS[kind]
            found[name] = int.from_bytes(data[position : position + width], "big", signed=signed)
        position += size
    return found
