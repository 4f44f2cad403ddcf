"""The codec as an adversary meets it: whatever it reads, it gives a valid message or one of its own errors."""

from __future__ import annotations

import json
import struct
import zlib
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from repid_core.codec import (
    death_fields,
    death_from_fields,
    decode_bucket,
    decode_envelope,
    encode_bucket,
    encode_envelope,
    envelope_from_fields,
    from_ms,
    message_fields,
    to_ms,
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
from repid_core.errors import CorruptBucketError, CorruptMessageError, NewerFormatError, PayloadTooLargeError

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
SECOND, MILLISECOND, MICROSECOND = timedelta(seconds=1), timedelta(milliseconds=1), timedelta(microseconds=1)
GOLDEN = {path.stem: path.read_bytes() for path in (Path(__file__).parent / "golden").glob("*.bin")}
MESSAGE = Envelope(
    RoutingKey("order-1", "greet", "mail"),
    Parameters(NOW, 30 * SECOND, 3, 1, "result", 60 * SECOND, 90 * SECOND, Recurrence(interval=60 * SECOND, anchor=NOW)),
    b'{"name":"Alex"}',
    args_id="args",
    args_owned=True,
    due=NOW,
    expires_at=NOW + SECOND,
    headers={"trace": "1"},
)
CRON = evolve(MESSAGE, parameters=evolve(MESSAGE.parameters, recurrence=Recurrence(cron="* * * * *", timezone="Europe/Berlin")))
RESULT = Bucket(b"1", "application/json", NOW, NOW + SECOND, Outcome(success=False, started_when=1, finished_when=2))


def frame(magic: bytes, fields: bytes, payload: bytes = b"") -> bytes:
    """A frame whose lengths and checksum are right, whatever is in it."""
    return struct.pack(">3sBIII", magic, 1, len(fields), len(payload), zlib.crc32(fields + payload)) + fields + payload


def message(fields: object) -> bytes:
    return frame(b"RPM", json.dumps(fields).encode())


def decode(name: str, data: bytes) -> Envelope | Bucket:
    return decode_bucket(data, "id", None) if name.startswith("bucket") else decode_envelope(data)


def parts(name: str) -> type[Exception]:
    return CorruptBucketError if name.startswith("bucket") else CorruptMessageError


# What is written is read

ids = st.from_regex(r"[A-Za-z0-9_:-][A-Za-z0-9._:-]{0,30}", fullmatch=True)
names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,30}", fullmatch=True)
times = st.integers(-(2**45), 2**46).map(from_ms)
spans = st.integers(1, 2**42).map(lambda ms: ms * MILLISECOND)
counts = st.integers(0, 2**31 - 1)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(), inside, max_size=3),
    max_leaves=10,
)
recurrences = st.builds(Recurrence, interval=spans, anchor=times) | st.builds(
    Recurrence, cron=st.text(), timezone=st.none() | st.text()
)
extras = st.dictionaries(st.text(), json_values, max_size=3).map(
    lambda extra: {name: value for name, value in extra.items() if name not in message_fields(MESSAGE)}
)
envelopes = st.builds(
    Envelope,
    key=st.builds(RoutingKey, ids, names, names, st.sampled_from(Priority)),
    parameters=st.builds(
        Parameters,
        timestamp=times,
        timeout=spans,
        retries=counts,
        tried=counts,
        result_id=st.none() | ids,
        ttl=st.none() | spans,
        recurrence=st.none() | recurrences,
    ),
    payload=st.binary(),
    content_type=st.text(),
    args_id=st.none() | ids,
    due=st.none() | times,
    expires_at=st.none() | times,
    headers=st.dictionaries(st.text(), st.text()),
    extra=extras,
)
buckets = st.builds(
    Bucket,
    payload=st.binary(),
    content_type=st.text(),
    timestamp=times,
    expires_at=st.none() | times,
    outcome=st.none()
    | st.builds(
        Outcome,
        success=st.booleans(),
        started_when=st.integers(0, 2**63 - 1),
        finished_when=st.integers(0, 2**63 - 1),
        exception=st.none() | st.text(),
        traceback=st.none() | st.text(),
    ),
)


@given(envelopes)
def test_the_fast_way_writes_what_the_plain_one_does(envelope: Envelope) -> None:
    head = encode_envelope(envelope)[16:].removesuffix(envelope.payload)
    assert json.loads(head) == message_fields(envelope)
    assert head.decode() == json.dumps(message_fields(envelope), ensure_ascii=False, separators=(",", ":"))


@given(envelopes)
def test_a_store_that_knows_the_key_can_leave_it_out(envelope: Envelope) -> None:
    frame = encode_envelope(envelope, with_key=False)
    assert len(frame) < len(encode_envelope(envelope))
    assert decode_envelope(frame, envelope.key) == envelope
    with pytest.raises(CorruptMessageError, match="id"):
        decode_envelope(frame)


@given(envelopes)
def test_every_message_survives_the_wire(envelope: Envelope) -> None:
    again = decode_envelope(encode_envelope(envelope))
    assert again == envelope
    assert encode_envelope(again) == encode_envelope(envelope)


@given(buckets)
def test_every_bucket_survives_the_wire(bucket: Bucket) -> None:
    assert decode_bucket(encode_bucket(bucket), "id", None) == bucket


@given(
    st.builds(Death, st.sampled_from(DeathReason), times, counts, st.none() | st.text()),
)
def test_every_death_survives_the_wire(death: Death) -> None:
    assert death_from_fields(json.loads(json.dumps(death_fields(death)))) == death


def test_what_to_do_about_duplicates_is_not_on_the_wire() -> None:
    assert decode_envelope(encode_envelope(evolve(MESSAGE, on_duplicate="replace"))) == MESSAGE


@given(st.datetimes(timezones=st.just(UTC), min_value=datetime(1900, 1, 1), max_value=datetime(2500, 1, 1)))  # noqa: DTZ001
def test_times_are_rounded_up_to_a_millisecond(time: datetime) -> None:
    rounded = from_ms(to_ms(time))
    assert timedelta(0) <= rounded - time < MILLISECOND
    assert to_ms(rounded) == to_ms(time)


def test_nothing_becomes_due_early() -> None:
    again = decode_envelope(encode_envelope(evolve(MESSAGE, due=NOW + MICROSECOND, expires_at=NOW + MICROSECOND)))
    assert (again.due, again.expires_at) == (NOW + MILLISECOND, NOW + MILLISECOND)


def test_durations_are_rounded_up_so_that_none_becomes_nothing() -> None:
    recurrence = Recurrence(interval=MICROSECOND, anchor=NOW)
    parameters = Parameters(NOW, MICROSECOND, result_id="r", result_ttl=MICROSECOND, ttl=MICROSECOND, recurrence=recurrence)
    again = decode_envelope(encode_envelope(evolve(MESSAGE, parameters=parameters))).parameters
    assert again.timeout == again.ttl == again.result_ttl == MILLISECOND
    assert again.recurrence == Recurrence(interval=MILLISECOND, anchor=NOW)


def test_a_traceback_with_an_undecodable_file_name_is_kept() -> None:
    """Python shows the bytes of such names as lone surrogates, which UTF-8 does not have."""
    outcome = Outcome(success=False, started_when=1, finished_when=2, traceback="no file 'caf\udce9.txt'")
    assert decode_bucket(encode_bucket(evolve(RESULT, outcome=outcome)), "id", None).outcome == outcome


def test_a_payload_that_no_frame_holds_is_refused() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 2**32

    with pytest.raises(PayloadTooLargeError, match="4,294,967,29"):
        encode_bucket(evolve(RESULT, payload=Huge()))


# Fields of later versions

NEWER = {**message_fields(MESSAGE), "tenant": {"id": [1, None, {"a": 1.5}]}, "shard": 7}


def requeued(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields after a reader of this version counted a failed attempt."""
    envelope = decode_envelope(message(fields))
    tried = envelope.parameters.tried + 1
    return message_fields(decode_envelope(encode_envelope(evolve(envelope, parameters=evolve(envelope.parameters, tried=tried)))))


def test_unknown_fields_survive_requeue() -> None:
    assert requeued(NEWER) == {**NEWER, "retries": {"max": 3, "tried": 2}}


@pytest.mark.parametrize("part", ["retries", "result", "args", "recurrence"])
@pytest.mark.parametrize("envelope", [MESSAGE, CRON], ids=["interval", "cron"])
def test_unknown_fields_inside_others_survive_requeue(part: str, envelope: Envelope) -> None:
    fields = message_fields(envelope)
    fields[part] = {**fields[part], "jitter": {"kind": "full"}}
    expected = deepcopy(fields)
    expected["retries"]["tried"] = 2
    assert requeued(fields) == expected


def test_unknown_fields_beside_no_retries_survive() -> None:
    fields = {**message_fields(Envelope(RoutingKey("a", "act"), Parameters(NOW))), "retries": {"max": 0, "tried": 0, "x": 1}}
    assert message_fields(decode_envelope(message(fields))) == fields


def test_reading_does_not_change_the_fields_that_are_given() -> None:
    fields = deepcopy(NEWER)
    fields["retries"]["x"] = 1
    before = deepcopy(fields)
    envelope_from_fields(fields, b"")
    assert fields == before


def test_unknown_fields_of_a_name_that_is_known_do_not_win() -> None:
    assert message_fields(evolve(MESSAGE, extra={"id": "forged"}))["id"] == "order-1"


def test_unknown_fields_of_buckets_are_ignored() -> None:
    fields = {"content_type": "application/json", "timestamp": to_ms(NOW), "compression": "none"}
    assert decode_bucket(frame(b"RPB", json.dumps(fields).encode()), "id", None) == Bucket(b"", "application/json", NOW)


@pytest.mark.parametrize("name", ["retries", "result", "args", "ttl", "due", "expires_at", "recurrence"])
def test_null_is_as_good_as_absent(name: str) -> None:
    fields = message_fields(MESSAGE)
    without = {key: value for key, value in fields.items() if key != name}
    assert envelope_from_fields({**fields, name: None}, b"") == envelope_from_fields(without, b"")


# Damage

WHOLE = ["message_everything", "message_cron", "message_binary_payload", "bucket_failed", "bucket_arguments"]


@pytest.mark.parametrize("name", WHOLE)
def test_truncated_at_any_length_it_is_corrupt(name: str) -> None:
    data = GOLDEN[name]
    for length in range(len(data)):
        with pytest.raises(parts(name)):
            decode(name, data[:length])


@pytest.mark.parametrize("name", WHOLE)
def test_with_bytes_behind_it_is_corrupt(name: str) -> None:
    with pytest.raises(parts(name), match="its length or checksum is wrong"):
        decode(name, GOLDEN[name] + b"\n")


@pytest.mark.parametrize("name", WHOLE)
def test_any_flipped_bit_is_noticed(name: str) -> None:
    data = bytearray(GOLDEN[name])
    for position in range(len(data) * 8):
        data[position // 8] ^= 1 << position % 8
        expected = NewerFormatError if data[3] > 1 else parts(name)
        with pytest.raises(expected):
            decode(name, bytes(data))
        data[position // 8] ^= 1 << position % 8


@given(st.binary())
def test_any_bytes_are_corrupt_or_newer(data: bytes) -> None:
    with pytest.raises((CorruptMessageError, NewerFormatError)):
        decode_envelope(data)
    with pytest.raises((CorruptBucketError, NewerFormatError)):
        decode_bucket(data, "id", None)
    with pytest.raises(CorruptMessageError):
        decode_envelope(frame(b"RPM", data))


def test_a_bucket_is_no_message_and_a_message_no_bucket() -> None:
    with pytest.raises(CorruptMessageError, match="the message is not in repid's format: it begins with b'RPB"):
        decode_envelope(GOLDEN["bucket_failed"])
    with pytest.raises(CorruptBucketError, match="bucket 'order-1' in dict is not in repid's format: it begins with b'RPM"):
        decode_bucket(GOLDEN["message_cron"], "order-1", {})


@pytest.mark.parametrize("version", range(2, 256))
def test_a_newer_version_is_told_by_four_bytes_whatever_follows(version: int) -> None:
    with pytest.raises(NewerFormatError, match=f"in format {version}, and this repid-core reads up to 1: .* The data is kept"):
        decode_envelope(b"RPM" + bytes([version]))


@pytest.mark.parametrize(
    "fields",
    [
        b"",
        b"null",
        b"[]",
        b'"id"',
        b"1",
        b"{",
        b"{} ",
        b" {}",
        b"{}{}",
        b"\xef\xbb\xbf{}",
        b'{"id": "\xff"}',
        b'{"x": NaN}',
        b'{"x": -Infinity}',
        b'{"x": 1e999}',
        b'{"x": ' + b"9" * 5000 + b"}",
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"x": ' + b'{"x":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    ],
    ids=lambda fields: fields[:20].decode(errors="replace"),
)
def test_fields_that_are_no_json_object_are_corrupt(fields: bytes) -> None:
    with pytest.raises(CorruptMessageError, match=r"the message is damaged: its fields are (not JSON|no JSON object)"):
        decode_envelope(frame(b"RPM", fields))
    with pytest.raises(CorruptBucketError, match=r"bucket 'id' in .* is damaged: its fields are (not JSON|no JSON object)"):
        decode_bucket(frame(b"RPB", fields), "id", None)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_unknown_fields_are_nested_as_deep_as_the_format_says() -> None:
    fields = {**message_fields(MESSAGE), "x": nested(31)}  # and the object around them
    assert message_fields(decode_envelope(message(fields))) == fields
    with pytest.raises(CorruptMessageError, match="nested more than 32 deep"):
        decode_envelope(message({**fields, "x": nested(32)}))


# Type confusion

NO_TEXT = [None, 7, 1.5, True, [], ["a"], {}, {"a": 1}, nested(500)]
NO_ID = [*NO_TEXT, "", ".", "..", "a b", "../../etc/passwd", "a\n", "a" * 257, "é"]
NO_NAME = [*NO_TEXT, "", "1a", "a b", "a/b", "a\n", "a" * 129]
NO_NUMBER: list[Any] = [None, "7", 1.5, 5.0, True, False, [], {}, 10**20, -(10**20), 10**400]
NO_SPAN = [*NO_NUMBER, 0, -1, 2**42 + 1]
NO_COUNT = [*NO_NUMBER, -1, 2**31]
NO_TIME = [*NO_NUMBER, 2**46 + 1, -(2**45) - 1]
NO_PART = [7, "a", True, False, [], [1], 0, ""]
WRONG: list[tuple[str, list[Any]]] = [
    ("id", NO_ID),
    ("topic", NO_NAME),
    ("queue", NO_NAME),
    ("priority", [*NO_NUMBER, 3, -1, 10]),
    ("content_type", NO_TEXT),
    ("timestamp", NO_TIME),
    ("timeout", NO_SPAN),
    ("retries", [*NO_PART, {}]),
    ("retries.max", NO_COUNT),
    ("retries.tried", NO_COUNT),
    ("result", [*NO_PART, {}]),
    ("result.id", NO_ID),
    ("result.ttl", NO_SPAN[1:]),
    ("args", [*NO_PART, {}]),
    ("args.id", NO_ID),
    ("args.owned", [None, 0, 1, "true", []]),
    ("ttl", NO_SPAN[1:]),
    ("due", NO_TIME[1:]),
    ("expires_at", NO_TIME[1:]),
    ("recurrence", [*NO_PART, {}, {"timezone": "UTC"}]),
    ("recurrence.interval", NO_SPAN),
    ("recurrence.anchor", NO_TIME),
    ("recurrence.cron", ["* * * * *", 7, True, []]),  # an interval is there already
    ("headers", [None, *NO_PART]),
    ("headers.trace", NO_TEXT),
]


def replaced(fields: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    fields = deepcopy(fields)
    *above, last = path.split(".")
    place = fields
    for name in above:
        place = place[name]
    place[last] = value
    return fields


@pytest.mark.parametrize(("path", "values"), WRONG, ids=[path for path, _ in WRONG])
def test_a_field_of_another_type_or_range_is_named(path: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(CorruptMessageError, match=path.rpartition(".")[2].replace("priority", r"priority|Priority")):
            decode_envelope(message(replaced(message_fields(MESSAGE), path, value)))


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("recurrence.cron", [7, True, [], {}, None]),
        ("recurrence.timezone", [7, True, []]),
        ("recurrence.interval", [60_000]),
    ],
)
def test_a_recurrence_is_one_or_the_other(path: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(CorruptMessageError, match="recurrence"):
            decode_envelope(message(replaced(message_fields(CRON), path, value)))


@pytest.mark.parametrize("name", ["id", "topic", "queue", "priority", "content_type", "timestamp", "timeout"])
def test_a_field_that_is_missing_is_named(name: str) -> None:
    fields = message_fields(MESSAGE)
    del fields[name]
    with pytest.raises(CorruptMessageError, match=name):
        decode_envelope(message(fields))


def test_a_huge_value_does_not_flood_the_log() -> None:
    fields = {**message_fields(MESSAGE), "content_type": ["x" * 10**6] * 3}
    with pytest.raises(CorruptMessageError) as caught:
        decode_envelope(message(fields))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("content_type", NO_TEXT),
        ("timestamp", NO_TIME),
        ("expires_at", NO_TIME[1:]),
        ("success", [None, 0, 1, "true", []]),
        ("started_when", [*NO_NUMBER[:-3], 2**63, 10**400]),
        ("finished_when", [*NO_NUMBER[:-3], -(2**64)]),
        ("exception", NO_TEXT[1:]),
        ("traceback", NO_TEXT[1:]),
    ],
)
def test_a_bucket_with_a_field_of_another_type_is_corrupt(path: str, values: list[Any]) -> None:
    data = encode_bucket(RESULT)
    fields = json.loads(data[16 : 16 + int.from_bytes(data[4:8], "big")])
    for value in values:
        broken = frame(b"RPB", json.dumps({**fields, path: value}).encode())
        with pytest.raises(CorruptBucketError, match=f"bucket 'args:1' in dict .*{path}"):
            decode_bucket(broken, "args:1", {})


@pytest.mark.parametrize(
    "change", [{"reason": "tired"}, {"reason": 1}, {"at": "now"}, {"attempts": True}, {"attempts": -1}, {"error": 1}]
)
def test_the_record_of_a_death_is_checked(change: dict[str, Any]) -> None:
    fields = death_fields(Death(DeathReason.FAILED, NOW, 1, "why"))
    with pytest.raises(CorruptMessageError, match="the record of a death is not valid"):
        death_from_fields({**fields, **change})


@pytest.mark.parametrize("fields", [{}, [], None, "failed"])
def test_what_is_no_record_of_a_death_is_corrupt(fields: Any) -> None:
    with pytest.raises(CorruptMessageError, match="the record of a death is not valid"):
        death_from_fields(fields)


paths = st.sampled_from([path for path, _ in WRONG] + ["recurrence.timezone", "recurrence.cron", "x", "retries.x"])
any_json = json_values | st.integers(-(2**50), 2**50) | ids


@given(st.sampled_from([MESSAGE, CRON]), st.lists(st.tuples(paths, any_json), min_size=1, max_size=4))
def test_whatever_is_in_the_fields_it_is_read_and_written_again_or_corrupt(
    envelope: Envelope, changes: list[tuple[str, Any]]
) -> None:
    fields = message_fields(envelope)
    for path, value in changes:
        if "." not in path or isinstance(fields.get(path.partition(".")[0]), dict):
            fields = replaced(fields, path, value)
    try:
        read = decode_envelope(message(fields))
    except CorruptMessageError:
        return
    assert decode_envelope(encode_envelope(read)) == read
    check_sums(read)


def test_the_longest_spans_after_the_latest_times_are_still_times() -> None:
    parameters = evolve(MESSAGE.parameters, ttl=2**42 * MILLISECOND, timeout=2**42 * MILLISECOND)
    for ms in (2**46, -(2**45)):
        read = decode_envelope(encode_envelope(evolve(MESSAGE, parameters=parameters, due=from_ms(ms))))
        assert read.due == from_ms(ms)
        check_sums(read)


def check_sums(envelope: Envelope) -> None:
    """No time and duration that came through adds up to more than a datetime holds."""
    for time in (envelope.due, envelope.expires_at, envelope.parameters.timestamp):
        for span in (envelope.parameters.timeout, envelope.parameters.ttl, envelope.parameters.result_ttl):
            assert (time or NOW) + (span or SECOND) > (time or NOW)
