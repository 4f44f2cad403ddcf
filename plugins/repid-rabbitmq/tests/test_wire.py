"""What is in a message's properties, and what a worker reads there."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from attrs import evolve

from repid_core.codec import encode_header
from repid_core.data import Envelope, Parameters, Priority, Recurrence, RoutingKey
from repid_core.errors import CorruptMessageError
from repid_rabbitmq import frames, wire
from repid_rabbitmq.topology import RETURNED

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
PLAIN = Envelope(RoutingKey("0b5f6a0e-8b2f-4f0e-9a53-6a1c8d0f4e21", "greet", "mail"), Parameters(NOON), b"[1]")
ID = "5f0c2a6b1e9d4c87-1f4a2"


def sent(props: bytes) -> frames.Properties:
    """Properties as they come back from the server."""
    head = struct.Struct(">BHI")
    whole = frames.published(1, b"", props, b"", 1 << 17)
    start = head.size + 1 + head.size  # of the method's frame, which is empty, and of the header's
    return frames.read(whole[start:-1])


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"key": evolve(PLAIN.key, priority=Priority.LOW)},
        {"key": evolve(PLAIN.key, priority=Priority.HIGH)},
        {"key": evolve(PLAIN.key, id_="i" * 256, topic="t" * 128)},
        {"content_type": "application/" + "ä" * 200},
        {"headers": {"trace": "x" * 1000}},
        {"parameters": Parameters(NOON, retries=3, tried=1, result_id="r", recurrence=Recurrence(cron="0 * * * *"))},
        {"due": NOON + timedelta(hours=1), "extra": {"new": {"er": 1}}},
    ],
)
def test_what_is_sent_is_read_again(more: dict[str, Any]) -> None:
    envelope = evolve(PLAIN, **more)
    assert wire.decode(sent(wire.encode(envelope, ID)), envelope.payload, "mail") == envelope


def test_a_plain_message_has_short_texts_only() -> None:
    """Of 64 bytes and more, Erlang makes binaries that its queues are slow to look after."""
    props = sent(wire.encode(PLAIN, ID))
    texts = (*props.headers.values(), *(value for value in props if isinstance(value, str)))
    assert all(len(text) < 64 for text in texts if not isinstance(text, int))
    assert len(props.headers) == 1


@pytest.mark.parametrize("priority", list(Priority))
def test_what_has_come_back_keeps_its_priority(priority: Priority) -> None:
    envelope = evolve(PLAIN, key=evolve(PLAIN.key, priority=priority))
    level = sent(wire.encode(envelope, ID)).priority
    back = sent(wire.again(sent(wire.encode(envelope, ID)), ID, RETURNED, repid_returned=b"%d" % level))
    assert back.priority == RETURNED
    assert wire.decode(back, envelope.payload, "mail") == envelope
    assert wire.priority_of(back, envelope.payload, "mail") is priority


def test_a_header_that_says_it_all_goes_before_the_properties() -> None:
    props = frames.Properties({wire.HEADER: encode_header(PLAIN)}, "text/plain", 0, "other", ID, 0, "other")
    assert wire.decode(props, PLAIN.payload, "other") == PLAIN


BARE = sent(wire.encode(PLAIN, ID))


@pytest.mark.parametrize(
    ("props", "said"),
    [
        (BARE._replace(headers={}), "no header 'repid'"),
        (BARE._replace(topic=""), "topic"),
        (BARE._replace(correlation_id=""), "id"),
        (BARE._replace(priority=9), "priority"),
        (BARE._replace(priority=RETURNED, headers={**BARE.headers, wire.RETURNED: b"7"}), "priority"),
    ],
)
def test_what_is_missing_is_named(props: frames.Properties, said: str) -> None:
    with pytest.raises(CorruptMessageError, match=said):
        wire.decode(props, PLAIN.payload, "mail")
    assert wire.priority_of(props, PLAIN.payload, "mail") is Priority.MEDIUM
