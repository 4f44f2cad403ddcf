"""The wire format of messages and buckets: versioned, and known to this module alone.

A frame is a header of 16 bytes (a magic of three, the version, then three big-endian 32-bit numbers: the length of the
fields, the length of the payload, and the CRC-32 of both), the fields as a JSON object, and the payload. Stores that
have headers of their own may carry `encode_header` there, and the payload as the body. `docs/reference/wire-format.md`
describes it byte for byte.

Nothing that is read is trusted: types, ranges and names are checked, so that what comes out is as a producer's own.
"""

from __future__ import annotations

import json
import reprlib
import struct
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, TypeVar

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
    check_id,
    check_name,
)
from repid_core.errors import CodecError, CorruptBucketError, CorruptMessageError, NewerFormatError, PayloadTooLargeError

_T = TypeVar("_T")

VERSION = 1

_HEADER = struct.Struct(">3sBIII")
_MESSAGE, _BUCKET = b"RPM", b"RPB"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_LONGEST = 1 << 42  # ms, 139 years
_EARLIEST, _LATEST = -(1 << 45), 1 << 46  # ms, the years 855 to 4199: with any span added, they are still datetimes
_MOST, _UINT32, _INT64 = (1 << 31) - 1, (1 << 32) - 1, (1 << 63) - 1
_DEPTH = 32  # of fields that are not known here
_OUTCOME = ("success", "started_when", "finished_when", "exception", "traceback")
_KEY = frozenset({"id", "topic", "queue", "priority"})
_BESIDE = _KEY | {"content_type"}
_NONE = frozenset[str]()
_KNOWN = _KEY | {
    *("content_type", "timestamp", "timeout", "retries", "result", "args", "ttl", "due", "expires_at"),
    *("recurrence", "headers"),
}
_PARTS = {  # what is known of nested objects
    "retries": frozenset({"max", "tried"}),
    "result": frozenset({"id", "ttl"}),
    "args": frozenset({"id", "owned"}),
    "recurrence": frozenset({"interval", "anchor", "cron", "timezone"}),
}


def _finite(text: str) -> float:
    if abs(number := float(text)) < float("inf"):
        return number
    raise ValueError(f"{text} is no number of JSON")


_NEWER = "{} is in format {}, and this repid-core reads up to {}: upgrade it here. The data is kept."

_dumps = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode
_dumps_ascii = json.JSONEncoder(separators=(",", ":")).encode
_quote = json.encoder.encode_basestring
_loads = json.JSONDecoder(parse_float=_finite, parse_constant=_finite).raw_decode


def to_ms(time: datetime) -> int:
    """Milliseconds since the epoch, rounded up, so that nothing comes early."""
    return -((_EPOCH - time) // _MILLISECOND)


def from_ms(ms: int) -> datetime:
    """The aware UTC time of `to_ms`."""
    return _EPOCH + ms * _MILLISECOND


def _to_span(duration: timedelta | None) -> int | None:
    return None if duration is None else -(-duration // _MILLISECOND)


def message_fields(envelope: Envelope) -> dict[str, Any]:
    """All of a message but its payload and the format's version, as JSON-able fields; those with nothing to say are left out."""
    key, parameters, recurrence = envelope.key, envelope.parameters, envelope.parameters.recurrence
    counts = parameters.retries or parameters.tried or "retries" in envelope.extra
    fields: dict[str, Any] = {
        "id": key.id_,
        "topic": key.topic,
        "queue": key.queue,
        "priority": int(key.priority),
        "content_type": envelope.content_type,
        "timestamp": to_ms(parameters.timestamp),
        "timeout": _to_span(parameters.timeout),
        "retries": {"max": parameters.retries, "tried": parameters.tried} if counts else None,
        "result": parameters.result_id and {"id": parameters.result_id, "ttl": _to_span(parameters.result_ttl)},
        "args": envelope.args_id and {"id": envelope.args_id, "owned": envelope.args_owned},
        "ttl": _to_span(parameters.ttl),
        "due": envelope.due and to_ms(envelope.due),
        "expires_at": envelope.expires_at and to_ms(envelope.expires_at),
        "recurrence": recurrence and _recurrence_fields(recurrence),
        "headers": dict(envelope.headers) or None,
    }
    fields = {name: value for name, value in fields.items() if value is not None}
    for name, value in envelope.extra.items():
        if name not in _PARTS:
            fields.setdefault(name, value)
        elif name in fields:
            fields[name] = {**value, **fields[name]}
    return fields


def _recurrence_fields(recurrence: Recurrence) -> dict[str, Any]:
    if recurrence.cron is None:
        return {"interval": _to_span(recurrence.interval), "anchor": to_ms(recurrence.anchor)}
    return {"cron": recurrence.cron, "timezone": recurrence.timezone}


def envelope_from_fields(fields: Mapping[str, Any], payload: bytes, key: RoutingKey | None = None) -> Envelope:
    """The message of `message_fields`; fields that this version does not know go to `extra`.

    Args:
        fields: Of one message.
        payload: What is beside them.
        key: What the fields may leave out: id, topic, queue and priority.

    Raises:
        CorruptMessageError: A field is missing or not valid; names it.
    """
    get = fields.get
    rest = {} if fields.keys() <= _KNOWN else {name: fields[name] for name in fields if name not in _KNOWN}
    try:
        retries, result, args = _part(fields, "retries", rest), _part(fields, "result", rest), _part(fields, "args", rest)
        recurrence = _part(fields, "recurrence", rest)
        headers = {} if "headers" not in fields else _typed(fields["headers"], "headers", dict)
        for name in headers:
            _typed(headers[name], f"headers.{name}", str)
        envelope = Envelope(
            key if key is not None and "id" not in fields else _key(get("id"), get("topic"), get("queue"), get("priority")),
            _plain(_number(get("timestamp"), "timestamp", _EARLIEST, _LATEST), _number(get("timeout"), "timeout", 1, _LONGEST))
            if retries is result is recurrence is get("ttl")  # all None
            else Parameters(
                _time(get("timestamp"), "timestamp"),
                _span(get("timeout"), "timeout"),
                0 if retries is None else _number(retries.get("max"), "retries.max"),
                0 if retries is None else _number(retries.get("tried"), "retries.tried"),
                None if result is None else check_id(result.get("id"), "result.id"),
                None if result is None or (ttl := result.get("ttl")) is None else _span(ttl, "result.ttl"),
                None if (ttl := get("ttl")) is None else _span(ttl, "ttl"),
                None if recurrence is None else _recurrence(**recurrence),
            ),
            payload,
            _typed(get("content_type"), "content_type", str),
            None if args is None else check_id(args.get("id"), "args.id"),
            False if args is None else _typed(args.get("owned"), "args.owned", bool),
            None if (due := get("due")) is None else _time(due, "due"),
            None if (expires_at := get("expires_at")) is None else _time(expires_at, "expires_at"),
            headers,
            extra=rest,
        )
        if rest:
            _check_depth(rest, _DEPTH)
    except (ValueError, RecursionError) as error:
        raise CorruptMessageError(f"the message has a field that is not valid: {error}") from error
    return envelope


def _part(fields: Mapping[str, Any], name: str, rest: dict[str, Any]) -> dict[str, Any] | None:
    """What is known of a nested object; what is not goes to `rest`."""
    part: dict[str, Any] | None = fields.get(name)
    if part is None:
        return None
    known = _PARTS[name]
    if _typed(part, name, dict).keys() <= known:
        return part
    rest[name] = {key: value for key, value in part.items() if key not in known}
    return {key: value for key, value in part.items() if key in known}


def _key(id_: Any, topic: Any, queue: Any, priority: Any) -> RoutingKey:
    if type(topic) is type(queue) is str and type(priority) is int:
        return RoutingKey(check_id(id_), topic, queue, _lane(topic, queue, priority))
    check_id(id_)
    check_name(topic, "topic")
    check_name(queue, "queue")
    raise ValueError(f"priority is {reprlib.repr(priority)}")


@lru_cache(4096)
def _plain(timestamp: int, timeout: int) -> Parameters:
    """The parameters of a plain message; what is enqueued together often shares them."""
    return Parameters(from_ms(timestamp), timeout * _MILLISECOND)


@lru_cache(4096)
def _lane(topic: str, queue: str, priority: int) -> Priority:
    """Check what many messages have in common."""
    check_name(topic, "topic")
    check_name(queue, "queue")
    return Priority(_number(priority, "priority"))


def _recurrence(interval: Any = None, anchor: Any = None, cron: Any = None, timezone: Any = None) -> Recurrence:
    if cron is None:
        return Recurrence(_span(interval, "recurrence.interval"), anchor=_time(anchor, "recurrence.anchor"))
    if interval is not None:
        raise ValueError("recurrence has both an interval and a cron line")
    zone = None if timezone is None else _typed(timezone, "recurrence.timezone", str)
    return Recurrence(cron=_typed(cron, "recurrence.cron", str), timezone=zone)


def _typed(value: Any, name: str, kind: type[_T]) -> _T:
    if type(value) is kind:
        return value
    raise ValueError(f"{name} is {reprlib.repr(value)}")


def _number(value: Any, name: str, least: int = 0, most: int = _MOST) -> int:
    if type(value) is int and least <= value <= most:  # bool, an int to isinstance, is none
        return value
    raise ValueError(f"{name} is {reprlib.repr(value)}")


def _span(ms: Any, name: str) -> timedelta:
    return _number(ms, name, 1, _LONGEST) * _MILLISECOND


def _time(ms: Any, name: str) -> datetime:
    return _EPOCH + _number(ms, name, _EARLIEST, _LATEST) * _MILLISECOND


def _check_depth(value: object, levels: int) -> None:
    """Refuse what is nested so deep that encoding it again might overflow the stack."""
    if isinstance(value, dict | list):
        if not levels:
            raise ValueError(f"fields are nested more than {_DEPTH} deep")
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, levels - 1)


def encode_envelope(envelope: Envelope, *, with_key: bool = True) -> bytes:
    """One message as one frame.

    Args:
        envelope: The message.
        with_key: Whether the frame says id, topic, queue and priority. Stores that keep these beside it can save the space;
            what they write has no key, and is of use to nobody else.
    """
    return _frame(_MESSAGE, _text(envelope, _NONE if with_key else _KEY), envelope.payload)


def _text(envelope: Envelope, without: frozenset[str] = _NONE) -> str:
    """The JSON of a message, without some or all of the fields that a store may keep beside it."""
    if envelope.extra or envelope.headers or envelope.parameters.recurrence is not None:
        return _dumps({name: value for name, value in message_fields(envelope).items() if name not in without})
    return _common(envelope, without)


def _common(envelope: Envelope, without: frozenset[str]) -> str:
    """The JSON of `message_fields` for a message without recurrence, headers and extra fields, made three times as fast."""
    key, parameters, args = envelope.key, envelope.parameters, ""
    head = "" if "id" in without else f'"id":{_quote(key.id_)},{_shared(key.topic, key.queue, key.priority)},'
    if "content_type" not in without:
        head += f'"content_type":{_quote(envelope.content_type)},'
    counts, times = "", ""
    if parameters.retries or parameters.tried:
        counts = f',"retries":{{"max":{parameters.retries},"tried":{parameters.tried}}}'
    if parameters.result_id:
        ttl = "null" if parameters.result_ttl is None else _to_span(parameters.result_ttl)
        counts += f',"result":{{"id":{_quote(parameters.result_id)},"ttl":{ttl}}}'
    if envelope.args_id:
        args = f',"args":{{"id":{_quote(envelope.args_id)},"owned":{"true" if envelope.args_owned else "false"}}}'
    if parameters.ttl is not None:
        times = f',"ttl":{_to_span(parameters.ttl)}'
    if envelope.due:
        times += f',"due":{to_ms(envelope.due)}'
    if envelope.expires_at:
        times += f',"expires_at":{to_ms(envelope.expires_at)}'
    return f'{{{head}"timestamp":{to_ms(parameters.timestamp)},"timeout":{_to_span(parameters.timeout)}{counts}{args}{times}}}'


@lru_cache(4096)
def _shared(topic: str, queue: str, priority: int) -> str:
    return f'"topic":{_quote(topic)},"queue":{_quote(queue)},"priority":{int(priority)}'


def decode_envelope(data: bytes, key: RoutingKey | None = None) -> Envelope:
    """The message of a frame.

    Args:
        data: The frame.
        key: What a frame without a key leaves out.

    Raises:
        CorruptMessageError: It is truncated or foreign.
        NewerFormatError: A newer repid wrote it.
    """
    return envelope_from_fields(*_unframe(_MESSAGE, "the message", data, CorruptMessageError), key)


def encode_header(envelope: Envelope, *, bare: bool = False) -> bytes:
    """All of a message but its payload, as the value of one header, for stores whose messages have such.

    Args:
        envelope: The message.
        bare: Whether to leave out id, topic, queue, priority and content type, which the store keeps beside it.
    """
    return b"%d %b" % (VERSION, _utf8(_text(envelope, _BESIDE if bare else _NONE)))


def decode_header(header: bytes, payload: bytes, beside: Mapping[str, Any] | None = None) -> Envelope:
    """The message of `encode_header`, with what was beside it.

    Args:
        header: The value.
        payload: The message's payload.
        beside: Fields that a bare header has left out, by their names in `message_fields`. What the header says goes first.

    Raises:
        CorruptMessageError: It is truncated or foreign, or a field is missing or not valid.
        NewerFormatError: A newer repid wrote it.
    """
    version, _, text = header.partition(b" ")
    if not version.isdigit() or len(version) > 9 or not int(version):
        raise CorruptMessageError(f"the message is not in repid's format: its header begins with {header[:8]!r}")
    if int(version) > VERSION:
        raise NewerFormatError(_NEWER.format("the message", int(version), VERSION))
    return envelope_from_fields({**(beside or {}), **_object("the message", text, CorruptMessageError)}, payload)


def death_fields(death: Death) -> dict[str, Any]:
    """A death as JSON-able fields."""
    return {"reason": death.reason.value, "at": to_ms(death.at), "attempts": death.attempts, "error": death.error}


def death_from_fields(fields: Mapping[str, Any]) -> Death:
    """The death of `death_fields`.

    Raises:
        CorruptMessageError: A field is missing or not valid.
    """
    try:
        reason, error = DeathReason(_typed(fields["reason"], "reason", str)), fields["error"]
        text = None if error is None else _typed(error, "error", str)
        return Death(reason, _time(fields["at"], "at"), _number(fields["attempts"], "attempts"), text)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptMessageError(f"the record of a death is not valid ({error!r})") from error


def encode_bucket(bucket: Bucket) -> bytes:
    """One bucket as one frame."""
    outcome = bucket.outcome
    fields: dict[str, Any] = {
        "content_type": bucket.content_type,
        "timestamp": to_ms(bucket.timestamp),
        "expires_at": bucket.expires_at and to_ms(bucket.expires_at),
    }
    if outcome is not None:
        fields |= {name: getattr(outcome, name) for name in _OUTCOME}
    return _frame(_BUCKET, _dumps({name: value for name, value in fields.items() if value is not None}), bucket.payload)


def decode_bucket(data: bytes, id_: str, store: object) -> Bucket:
    """The bucket of a frame; errors name `id_` and `store`, the broker that gave it.

    Raises:
        CorruptBucketError: It is truncated or foreign.
        NewerFormatError: A newer repid wrote it.
    """
    where = f"bucket {id_!r} in {type(store).__name__}"
    fields, payload = _unframe(_BUCKET, where, data, CorruptBucketError)
    get = fields.get
    try:
        outcome = None
        if "success" in fields:
            started, finished = (_number(get(name), name, -_INT64, _INT64) for name in _OUTCOME[1:3])
            texts = (None if (text := get(name)) is None else _typed(text, name, str) for name in _OUTCOME[3:])
            outcome = Outcome(_typed(fields["success"], "success", bool), started, finished, *texts)
        expires_at = None if (ms := get("expires_at")) is None else _time(ms, "expires_at")
        content_type = _typed(get("content_type"), "content_type", str)
        return Bucket(payload, content_type, _time(get("timestamp"), "timestamp"), expires_at, outcome)
    except ValueError as error:
        raise CorruptBucketError(f"{where} has a field that is not valid: {error}") from error


def _utf8(fields: str) -> bytes:
    try:
        return fields.encode()
    except UnicodeEncodeError:  # lone surrogates, as in a traceback with an undecodable file name, travel escaped
        return _dumps_ascii(json.loads(fields)).encode()


def _frame(magic: bytes, fields: str, payload: bytes) -> bytes:
    head = _utf8(fields)
    if (size := len(head) + len(payload)) > _UINT32:
        raise PayloadTooLargeError(size, _UINT32, "a frame holds no more")
    crc = zlib.crc32(payload, zlib.crc32(head))
    return b"".join((_HEADER.pack(magic, VERSION, len(head), len(payload), crc), head, payload))


def _unframe(
    magic: bytes, where: str, data: bytes, corrupt: type[CodecError | CorruptBucketError]
) -> tuple[dict[str, Any], bytes]:
    if data[:3] != magic or len(data) < 4 or data[3] == 0:
        raise corrupt(f"{where} is not in repid's format: it begins with {data[:4]!r}")
    if data[3] > VERSION:
        raise NewerFormatError(_NEWER.format(where, data[3], VERSION))
    if len(data) < _HEADER.size:
        raise corrupt(f"{where} is damaged: it has {len(data)} bytes, too few for a header")
    _, _, head_size, payload_size, crc = _HEADER.unpack_from(data)
    start = _HEADER.size + head_size
    head, payload = data[_HEADER.size : start], data[start:]
    if len(head) != head_size or len(payload) != payload_size or zlib.crc32(payload, zlib.crc32(head)) != crc:
        raise corrupt(f"{where} is damaged: its length or checksum is wrong")
    return _object(where, head, corrupt), payload


def _object(where: str, head: bytes, corrupt: type[CodecError | CorruptBucketError]) -> dict[str, Any]:
    try:
        text = str(head, "utf-8")
        fields, end = _loads(text)
    except (ValueError, RecursionError) as error:
        raise corrupt(f"{where} is damaged: its fields are not JSON ({error})") from error
    if not isinstance(fields, dict) or end != len(text):
        raise corrupt(f"{where} is damaged: its fields are no JSON object")
    return fields
