"""The wire format is what golden files and its reference page say, byte for byte.

Never change a golden file, or what it stands for here: messages like these wait in somebody's queues. Add others.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from repid_core.codec import (
    death_fields,
    death_from_fields,
    decode_bucket,
    decode_envelope,
    decode_header,
    encode_bucket,
    encode_envelope,
    encode_header,
    message_fields,
)
from repid_core.data import (
    Bucket,
    Death,
    DeathReason,
    Envelope,
    Outcome,
    Parameters,
    Priority,
    Recurrence,
    RoutingKey,
)
from repid_core.errors import CorruptMessageError, NewerFormatError

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
SECOND, DAY = timedelta(seconds=1), timedelta(days=1)

MESSAGES = {
    "minimal": Envelope(RoutingKey("a", "greet"), Parameters(NOON)),
    "everything": Envelope(
        key=RoutingKey("9f1c2b34-5d6e-4f70-8a91-b2c3d4e5f607", "greet", "mail", Priority.HIGH),
        parameters=Parameters(
            timestamp=NOON,
            timeout=30 * SECOND,
            retries=3,
            tried=1,
            result_id="result.1",
            result_ttl=DAY,
            ttl=timedelta(hours=1),
            recurrence=None,
        ),
        payload=b'{"user_id":1,"name":"Alex"}',
        content_type="application/json",
        due=NOON + timedelta(milliseconds=1),
        expires_at=NOON + timedelta(hours=1, milliseconds=1),
        headers={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
        extra={"tenant": {"id": 7, "tags": ["a", None, 1.5]}, "retries": {"policy": "linear"}},
    ),
    "cron": Envelope(
        RoutingKey("nightly", "clean_up"),
        Parameters(NOON, ttl=60 * SECOND, recurrence=Recurrence(cron="30 2 * * MON-FRI", timezone="Europe/Berlin")),
        due=datetime(2030, 1, 2, 1, 30, tzinfo=UTC),
    ),
    "cron_in_utc": Envelope(
        RoutingKey("hourly", "clean_up"),
        Parameters(NOON, recurrence=Recurrence(cron="0 * * * *")),
        due=NOON + timedelta(hours=1),
    ),
    "interval": Envelope(
        RoutingKey("beat", "ping"),
        Parameters(NOON, recurrence=Recurrence(interval=90 * SECOND, anchor=NOON)),
        due=NOON + 90 * SECOND,
    ),
    "args_in_bucket": Envelope(
        RoutingKey("b", "greet"),
        Parameters(NOON, result_id="kept-for-ever"),
        args_id="args:1",
        args_owned=True,
    ),
    "unicode": Envelope(
        RoutingKey("c", "greet"),
        Parameters(NOON),
        payload='{"name":"Zoë 🎈"}'.encode(),
        headers={"größe": "日本語", "quote": 'a"b\\c\n'},
    ),
    "binary_payload": Envelope(
        RoutingKey("d", "greet", priority=Priority.LOW),
        Parameters(NOON),
        payload=bytes(range(256)),
        content_type="application/msgpack",
    ),
}

BUCKETS = {
    "arguments": Bucket(b'{"user_id":1}', "application/json", NOON, NOON + DAY),
    "succeeded": Bucket(
        b'"Hello, Alex"',
        "application/json",
        NOON,
        None,
        Outcome(success=True, started_when=1893499200_000000001, finished_when=1893499201_500000002),
    ),
    "failed": Bucket(
        b"",
        "application/json",
        NOON,
        NOON + DAY,
        Outcome(
            success=False,
            started_when=1893499200_000000001,
            finished_when=1893499201_500000002,
            exception="ValueError",
            traceback='Traceback (most recent call last):\n  File "mail.py", line 1\nValueError: größe',
        ),
    ),
}

GOLDEN = Path(__file__).parent / "golden"
SHA256 = {
    "bucket_arguments.bin": "1972a59acf2bb2fbab0c99bc4e0784fc75bd2e07ff137d3283d3dbf5de2f3cea",
    "bucket_failed.bin": "c2c0f89150fa8b77c09ebd47ae08874a68c66e3ee07c2e84ca544a3cba65a916",
    "bucket_of_version_2.bin": "0be39edcbe0e3a65138274b9bc4c52e777fdd124de601a956fe664911d60bcb6",
    "bucket_succeeded.bin": "7fdd3ece9c74766532fd292e7d0dea1d453a231079f7ecdc0d9a954b34852d38",
    "message_args_in_bucket.bin": "f74ab4b0ae8e5ad08c52758e37362cbbeadced5a666ebe776b3d1113527ee19a",
    "message_binary_payload.bin": "738cbc3dac317b502b902ca9fcbefab737c376d5001cb04eaa36d9fb0416cae2",
    "message_cron.bin": "19eb81ad695eccc4892a61af0bbc5ed419410c6a57d7ad4bfa40df293d0654be",
    "message_cron_in_utc.bin": "007afb4c6b634e744ac575fbd740d3a27086587f7399b4d6054d53e36ed73003",
    "message_everything.bin": "cb1f3ed987a006e234e8ce66b4773265450af0b3664bc91911b9267c7ac99fca",
    "message_interval.bin": "1283992676a6d2c7e6f4f6a634a528382790ac5112aba36cc6ee444bbe8b14b2",
    "message_minimal.bin": "3e15d2241c9f68e6b312628c050142f0f1ac8fd58f45e7468655d9eb49a9e218",
    "message_of_version_2.bin": "96fe2f099fb67ea3ba8ea0104c60492f57b42787aecc5ad4ce0559bebf6356b8",
    "message_unicode.bin": "f0835579a05b6f02961870e5353012bcbb8c8c6b94e016c747cbafeffe66d06e",
}


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.bin").read_bytes()


def test_no_golden_file_was_changed_or_removed() -> None:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in GOLDEN.iterdir()}
    assert found == SHA256


@pytest.mark.parametrize("name", MESSAGES)
def test_a_golden_message_decodes_to_what_it_always_did(name: str) -> None:
    assert decode_envelope(golden(f"message_{name}")) == MESSAGES[name]


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_encoded_to_the_golden_bytes(name: str) -> None:
    assert encode_envelope(MESSAGES[name]) == golden(f"message_{name}")


@pytest.mark.parametrize("name", BUCKETS)
def test_a_golden_bucket_decodes_to_what_it_always_did(name: str) -> None:
    assert decode_bucket(golden(f"bucket_{name}"), "id", None) == BUCKETS[name]


@pytest.mark.parametrize("name", BUCKETS)
def test_a_bucket_is_encoded_to_the_golden_bytes(name: str) -> None:
    assert encode_bucket(BUCKETS[name]) == golden(f"bucket_{name}")


def test_a_message_of_version_2_is_refused() -> None:
    with pytest.raises(NewerFormatError, match="the message is in format 2, and this repid-core reads up to 1: upgrade"):
        decode_envelope(golden("message_of_version_2"))


def test_a_bucket_of_version_2_is_refused_by_name() -> None:
    with pytest.raises(NewerFormatError, match="bucket 'args:7' in dict is in format 2"):
        decode_bucket(golden("bucket_of_version_2"), "args:7", {})


# The reference page

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "wire-format.md").read_text(encoding="utf-8")
EXAMPLE = Envelope(RoutingKey("a", "greet"), Parameters(NOON), b'{"name":"Alex"}')


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def rows(heading: str) -> set[str]:
    """The fields that the table under a heading lists."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `([a-z_.]+)` \|", section, re.MULTILINE))


def names(fields: dict[str, Any], above: str = "") -> set[str]:
    """The dotted names of fields; what is inside headers and unknown fields is no field."""
    own = {above + name for name in fields}
    return own.union(*(names(part, f"{above}{name}.") for name, part in fields.items() if name in INSIDE))


INSIDE = {"retries", "result", "args", "recurrence"}


def test_the_hexdump_of_the_page_is_the_frame() -> None:
    lines = []
    data = encode_envelope(EXAMPLE)
    for offset in range(0, len(data), 16):
        part = data[offset : offset + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{offset:04x}  {part.hex(' '):<47}  {text}\n")
    assert block("hexdump") == "".join(lines)


def test_the_page_lists_all_fields_of_messages() -> None:
    known = set().union(*(names(message_fields(evolve(message, extra={}))) for message in MESSAGES.values()))
    assert rows("Message fields") == known


def test_the_page_lists_all_fields_of_buckets() -> None:
    written: set[str] = set()
    for name in BUCKETS:
        data = golden(f"bucket_{name}")
        written |= json.loads(data[16 : 16 + int.from_bytes(data[4:8], "big")]).keys()
    assert rows("Bucket fields") == written


def test_the_page_shows_the_record_of_a_death() -> None:
    death = Death(DeathReason.FAILED, NOON, 4, "ValueError: no such user")
    fields = json.loads(block("json"))
    assert rows("Record of a death") == fields.keys()
    assert death_fields(death) == fields
    assert death_from_fields(fields) == death


def test_the_producer_of_the_page_writes_what_repid_reads() -> None:
    namespace: dict[str, Any] = {}
    exec(block("python"), namespace)  # noqa: S102 — it is ours
    envelope = decode_envelope(namespace["frame"])
    assert envelope.key == RoutingKey("order-17", "greet", "mail", Priority.MEDIUM)
    assert json.loads(envelope.payload) == {"name": "Alex"}
    assert (envelope.parameters.retries, envelope.parameters.timeout) == (3, timedelta(minutes=10))
    assert abs(envelope.parameters.timestamp - datetime.now(UTC)) < timedelta(minutes=1)


HEADERS = [line for line in re.findall(r"^```text\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL) if line.startswith("1 {")]
BESIDE = {"id": "a", "topic": "greet", "queue": "default", "priority": 5, "content_type": "application/json"}


def test_a_store_with_headers_carries_the_same_fields_apart() -> None:
    whole, bare = HEADERS
    assert encode_header(EXAMPLE).decode() == whole
    assert decode_header(whole.encode(), EXAMPLE.payload) == EXAMPLE
    assert encode_header(EXAMPLE, bare=True).decode() == bare
    assert decode_header(bare.encode(), EXAMPLE.payload, BESIDE) == EXAMPLE


@pytest.mark.parametrize(
    "more",
    [
        {"headers": {"trace": "1"}},
        {"extra": {"new": 1}},
        {"parameters": Parameters(NOON, recurrence=Recurrence(cron="0 * * * *"))},
        {"due": NOON, "args_id": "b", "payload": b""},
    ],
)
def test_a_bare_header_has_all_that_is_not_beside_it(more: dict[str, Any]) -> None:
    envelope = evolve(EXAMPLE, **more)
    header = encode_header(envelope, bare=True)
    assert not json.loads(header[2:]).keys() & BESIDE.keys()
    assert decode_header(header, envelope.payload, BESIDE) == envelope


def test_what_a_header_says_goes_before_what_is_beside_it() -> None:
    others = {"id": "z", "topic": "other", "queue": "other", "priority": 9, "content_type": "text/plain"}
    assert decode_header(encode_header(EXAMPLE), EXAMPLE.payload, others) == EXAMPLE


@pytest.mark.parametrize(("name", "value"), [("id", ""), ("topic", ""), ("queue", "9"), ("priority", 4), ("content_type", None)])
def test_what_is_beside_a_bare_header_is_checked_as_well(name: str, value: Any) -> None:
    with pytest.raises(CorruptMessageError, match=f"(?i){name.split('_', maxsplit=1)[0]}"):
        decode_header(encode_header(EXAMPLE, bare=True), b"", BESIDE | {name: value})
