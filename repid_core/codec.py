"""The wire format of messages and buckets: versioned, and known to this module alone.

A frame is a header of 16 bytes (a magic of three, the version, then three big-endian 32-bit numbers: the length of the
fields, the length of the payload, and the CRC-32 of both), the fields as a JSON object, and the payload. Stores that
have fields of their own may carry `message_fields` and the payload apart. `docs/reference/wire-format.md` describes it
byte for byte.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

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
from repid_core.errors import CodecError, CorruptBucketError, CorruptMessageError, NewerFormatError

VERSION = 1

_HEADER = struct.Struct(">3sBIII")
_MESSAGE, _BUCKET = b"RPM", b"RPB"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_loads = json.JSONDecoder().decode


def to_ms(time: datetime) -> int:
    """Milliseconds since the epoch, rounded up, so that nothing comes early."""
    return -((_EPOCH - time) // _MILLISECOND)


def from_ms(ms: int) -> datetime:
    """The aware UTC time of `to_ms`."""
    return _EPOCH + timedelta(milliseconds=ms)


def _span(duration: timedelta | None) -> int | None:
    return None if duration is None else duration // _MILLISECOND


def _from_span(ms: int | None) -> timedelta | None:
    return None if ms is None else timedelta(milliseconds=ms)


def message_fields(envelope: Envelope) -> dict[str, Any]:
    """All of a message but its payload and the format's version, as JSON-able fields; those with nothing to say are left out."""
    key, parameters = envelope.key, envelope.parameters
    fields: dict[str, Any] = {
        **envelope.extra,
        "id": key.id_,
        "topic": key.topic,
        "queue": key.queue,
        "priority": int(key.priority),
        "content_type": envelope.content_type,
        "timestamp": to_ms(parameters.timestamp),
        "timeout": _span(parameters.timeout),
    }
    if parameters.retries or parameters.tried:
        fields["retries"] = {"max": parameters.retries, "tried": parameters.tried}
    if parameters.result_id is not None:
        fields["result"] = {"id": parameters.result_id, "ttl": _span(parameters.result_ttl)}
    if envelope.args_id is not None:
        fields["args"] = {"id": envelope.args_id, "owned": envelope.args_owned}
    if parameters.ttl is not None:
        fields["ttl"] = _span(parameters.ttl)
    if envelope.due is not None:
        fields["due"] = to_ms(envelope.due)
    if envelope.expires_at is not None:
        fields["expires_at"] = to_ms(envelope.expires_at)
    if (recurrence := parameters.recurrence) is not None:
        if recurrence.cron is None:
            fields["recurrence"] = {"interval": _span(recurrence.interval), "anchor": to_ms(recurrence.anchor)}
        else:
            fields["recurrence"] = {"cron": recurrence.cron, "timezone": recurrence.timezone}
    if envelope.headers:
        fields["headers"] = dict(envelope.headers)
    return fields


def envelope_from_fields(fields: Mapping[str, Any], payload: bytes) -> Envelope:
    """The message of `message_fields`; unknown fields go to `extra`.

    Raises:
        CorruptMessageError: A field is missing or has the wrong type; names it.
    """
    rest = dict(fields)
    try:
        retries = rest.pop("retries", None) or {"max": 0, "tried": 0}
        result = rest.pop("result", None)
        args = rest.pop("args", None)
        recurrence = rest.pop("recurrence", None)
        due, expires_at = rest.pop("due", None), rest.pop("expires_at", None)
        return Envelope(
            key=RoutingKey(rest.pop("id"), rest.pop("topic"), rest.pop("queue"), Priority(rest.pop("priority"))),
            parameters=Parameters(
                timestamp=from_ms(rest.pop("timestamp")),
                timeout=timedelta(milliseconds=rest.pop("timeout")),
                retries=retries["max"],
                tried=retries["tried"],
                result_id=result and result["id"],
                result_ttl=result and _from_span(result["ttl"]),
                ttl=_from_span(rest.pop("ttl", None)),
                recurrence=recurrence and _recurrence(recurrence),
            ),
            payload=payload,
            content_type=rest.pop("content_type"),
            args_id=args and args["id"],
            args_owned=bool(args and args["owned"]),
            due=None if due is None else from_ms(due),
            expires_at=None if expires_at is None else from_ms(expires_at),
            headers=rest.pop("headers", None) or {},
            extra=rest,
        )
    except KeyError as error:
        raise CorruptMessageError(f"the message has no field {error}: repid did not write it") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise CorruptMessageError(f"a field of the message is not valid ({error}): repid did not write it") from error


def _recurrence(fields: Mapping[str, Any]) -> Recurrence:
    if "cron" in fields:
        return Recurrence(cron=fields["cron"], timezone=fields["timezone"])
    return Recurrence(interval=timedelta(milliseconds=fields["interval"]), anchor=from_ms(fields["anchor"]))


def encode_envelope(envelope: Envelope) -> bytes:
    """One message as one frame."""
    return _frame(_MESSAGE, message_fields(envelope), envelope.payload)


def decode_envelope(data: bytes) -> Envelope:
    """The message of a frame.

    Raises:
        CorruptMessageError: It is truncated or foreign.
        NewerFormatError: A newer repid wrote it.
    """
    return envelope_from_fields(*_unframe(_MESSAGE, "message", data, CorruptMessageError))


def death_fields(death: Death) -> dict[str, Any]:
    """A death as JSON-able fields."""
    return {"reason": death.reason.value, "at": to_ms(death.at), "attempts": death.attempts, "error": death.error}


def death_from_fields(fields: Mapping[str, Any]) -> Death:
    """The death of `death_fields`.

    Raises:
        CorruptMessageError: A field is missing or not valid.
    """
    try:
        return Death(DeathReason(fields["reason"]), from_ms(fields["at"]), fields["attempts"], fields["error"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CorruptMessageError(f"the record of a death is not valid ({error!r})") from error


def encode_bucket(bucket: Bucket) -> bytes:
    """One bucket as one frame."""
    fields: dict[str, Any] = {"content_type": bucket.content_type, "timestamp": to_ms(bucket.timestamp)}
    if bucket.expires_at is not None:
        fields["expires_at"] = to_ms(bucket.expires_at)
    if (outcome := bucket.outcome) is not None:
        fields["success"] = outcome.success
        fields["started_when"], fields["finished_when"] = outcome.started_when, outcome.finished_when
        if outcome.exception is not None:
            fields["exception"] = outcome.exception
        if outcome.traceback is not None:
            fields["traceback"] = outcome.traceback
    return _frame(_BUCKET, fields, bucket.payload)


def decode_bucket(data: bytes, id_: str, store: object) -> Bucket:
    """The bucket of a frame.

    Args:
        data: What the store gave.
        id_: The bucket's id, for the error.
        store: The broker, for the error.

    Raises:
        CorruptBucketError: It is truncated or foreign; names id and store.
        NewerFormatError: A newer repid wrote it; names id and store.
    """
    where = f"bucket {id_!r} in {type(store).__name__}"
    fields, payload = _unframe(_BUCKET, where, data, CorruptBucketError)
    try:
        outcome = None
        if "success" in fields:
            outcome = Outcome(
                fields["success"],
                fields["started_when"],
                fields["finished_when"],
                fields.get("exception"),
                fields.get("traceback"),
            )
        expires_at = fields.get("expires_at")
        return Bucket(
            payload,
            fields["content_type"],
            from_ms(fields["timestamp"]),
            None if expires_at is None else from_ms(expires_at),
            outcome,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CorruptBucketError(f"{where} lacks a field or has a wrong one ({error!r})") from error


def _frame(magic: bytes, fields: Mapping[str, Any], payload: bytes) -> bytes:
    head = _dumps(fields).encode()
    crc = zlib.crc32(payload, zlib.crc32(head))
    return b"".join((_HEADER.pack(magic, VERSION, len(head), len(payload), crc), head, payload))


def _unframe(
    magic: bytes,
    where: str,
    data: bytes,
    corrupt: type[CodecError] | type[CorruptBucketError],
) -> tuple[dict[str, Any], bytes]:
    if len(data) < _HEADER.size:
        raise corrupt(f"{where} is not in repid's format: it has {len(data)} bytes, too few for a header")
    found, version, head_size, payload_size, crc = _HEADER.unpack_from(data)
    if found != magic or version == 0:
        raise corrupt(f"{where} is not in repid's format: it begins with {data[:4]!r}")
    if version > VERSION:
        raise NewerFormatError(
            f"{where} is in format {version}, and this repid-core reads up to {VERSION}: upgrade it here. The data is kept.",
        )
    start = _HEADER.size + head_size
    if len(data) != start + payload_size or zlib.crc32(data[_HEADER.size :]) != crc:
        raise corrupt(f"{where} is damaged: its length or checksum is wrong")
    try:
        fields = _loads(str(data[_HEADER.size : start], "utf-8"))
    except ValueError as error:
        raise corrupt(f"{where} is damaged: its fields are not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise corrupt(f"{where} is damaged: its fields are no JSON object")
    return fields, data[start:]

