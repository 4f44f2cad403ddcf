"""What is written by hand is what the protocol's library reads, and the other way round."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pamqp import commands, frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from repid_rabbitmq import frames

FRAME_MAX = 4096


def unmarshal_all(data: bytes) -> list[Any]:
    found: list[Any] = []
    while data:
        size, channel, one = frame.unmarshal(data)
        assert channel == 7
        found.append(one)
        data = data[size:]
    return found


def made(**changes: Any) -> bytes:
    given: dict[str, Any] = {
        "content_type": "application/json",
        "priority": 2,
        "correlation_id": "job-1",
        "message_id": "m-1",
        "timestamp": 1_893_456_000,
        "topic": "work",
        **changes,
    }
    return frames.properties(given.pop("headers", {"repid": b"1 {}"}), **given)


@pytest.mark.parametrize("size", [0, 1, FRAME_MAX - 8, FRAME_MAX - 7, 3 * FRAME_MAX])
def test_a_message_is_read_as_it_was_written(size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    data = frames.published(7, frames.route("exchange", "key"), made(), body[:size], FRAME_MAX)
    publish, header, *parts = unmarshal_all(data)
    assert isinstance(publish, commands.Basic.Publish)
    assert (publish.exchange, publish.routing_key, publish.mandatory, publish.immediate) == ("exchange", "key", True, False)
    assert isinstance(header, ContentHeader)
    assert header.body_size == size
    properties = header.properties
    assert (properties.content_type, properties.delivery_mode, properties.priority) == ("application/json", 2, 2)
    assert (properties.correlation_id, properties.message_id, properties.message_type) == ("job-1", "m-1", "work")
    assert properties.timestamp == datetime(2030, 1, 1, tzinfo=UTC)
    assert properties.headers == {"repid": "1 {}"}
    assert all(isinstance(part, ContentBody) for part in parts)
    assert b"".join(part.value for part in parts) == body[:size]
    assert all(len(part.value) + 8 <= FRAME_MAX for part in parts)


def test_texts_that_are_too_long_are_cut() -> None:
    """An id may have 256 characters; what the worker goes by is in the header."""
    read = frames.read(b"\0<\0\0" + bytes(8) + frames._FLAGS.to_bytes(2, "big") + made(correlation_id="x" * 256))
    assert read.correlation_id == "x" * 255
    assert read.headers == {"repid": b"1 {}"}


def test_properties_of_ours_are_read_the_short_way() -> None:
    data = frames.published(7, frames.route("", "q"), made(headers={"repid": b"1 {}", "repid-bounces": b"3"}), b"", FRAME_MAX)
    header = data[data.index(b"\xce\x02") + 8 : -1]
    assert frames.read(header) == frames.Properties(
        {"repid": b"1 {}", "repid-bounces": b"3"}, "application/json", 2, "job-1", "m-1", 1_893_456_000, "work"
    )


def test_acknowledgements() -> None:
    ack, many, nack = unmarshal_all(
        frames.acked(7, 1, multiple=False) + frames.acked(7, 1 << 40, multiple=True) + frames.given_back(7, 3)
    )
    assert (ack.name, ack.delivery_tag, ack.multiple) == ("Basic.Ack", 1, False)
    assert (many.delivery_tag, many.multiple) == (1 << 40, True)
    assert (nack.name, nack.delivery_tag, nack.multiple, nack.requeue) == ("Basic.Nack", 3, False, True)


def test_properties_of_others_are_read() -> None:
    """All types of the protocol, and properties that are none of ours, may stand before what is looked for."""
    headers: dict[str, Any] = {
        "a bool": True,
        "a number": -3,
        "a long": 1 << 40,
        "a float": 1.5,
        "a decimal": Decimal("1.25"),
        "a time": datetime(2030, 1, 1, tzinfo=UTC),
        "a table": {"x": [1, {"y": None}]},
        "an array": [1, "two", {}],
        "bytes": bytearray(b"\0\1"),
        "nothing": None,
        "repid": "1 {}",
        "x-delivery-count": 5,
    }
    properties = commands.Basic.Properties(
        content_type="text/plain",
        content_encoding="utf-8",
        headers=headers,
        correlation_id="c",
        reply_to="r",
        expiration="1000",
        message_id="m",
        message_type="t",
        user_id="u",
        app_id="a",
    )
    data = frame.marshal(ContentHeader(0, 5, properties), 7)
    read = frames.read(data[7:-1])
    assert (read.content_type, read.correlation_id, read.message_id, read.topic) == ("text/plain", "c", "m", "t")
    assert read.priority == read.timestamp == 0
    assert read.headers["repid"] == b"1 {}"
    assert (read.headers["x-delivery-count"], read.headers["a number"], read.headers["a long"]) == (5, -3, 1 << 40)
    assert frames.body_size(data[7:-1]) == 5


def test_no_properties() -> None:
    data = frame.marshal(ContentHeader(0, 0, commands.Basic.Properties()), 7)
    assert frames.read(data[7:-1]) == frames.Properties({})
