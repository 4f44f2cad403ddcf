"""What is stored of a message: its place, eight bytes by which a call that is sent twice is known, and a frame of the rest."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from itertools import count
from typing import Final

from attrs import evolve

from repid_core.codec import death_fields, death_from_fields, decode_envelope, encode_envelope
from repid_core.data import Death, DeathReason, Envelope, Priority, RoutingKey, check_name
from repid_core.errors import CodecError, CorruptMessageError

STAMP: Final = 8  # bytes
_RANKS: Final = {priority: str(rank) for rank, priority in enumerate(sorted(Priority, reverse=True))}
_PRIORITIES: Final = {rank: priority for priority, rank in _RANKS.items()}
_dumps: Final = json.JSONEncoder(separators=(",", ":")).encode  # in ASCII and in one line, as the scripts want it


class Stamps:
    """Gives eight bytes that no other gives: four that were drawn at random for this client, and a number."""

    def __init__(self) -> None:
        self._client, self._next = os.urandom(4), count().__next__

    def __call__(self) -> bytes:
        return self._client + (self._next() & 0xFFFFFFFF).to_bytes(4, "big")


def place_of(key: RoutingKey) -> str:
    """Priority and topic, in the order in which they are to be served."""
    return _RANKS[key.priority] + key.topic


def encode(envelope: Envelope, stamp: bytes) -> bytes:
    """The record of a message."""
    return b"%b\n%b%b" % (place_of(envelope.key).encode(), stamp, encode_envelope(envelope, with_key=False))


def decode(record: bytes, id_: str, queue: str) -> Envelope:
    """The message of a record.

    Raises:
        CorruptMessageError: It cannot be decoded.
        NewerFormatError: A newer repid wrote it.
    """
    end = record.find(b"\n")
    priority, topic = _place(record[:end])
    return decode_envelope(record[end + 1 + STAMP :], RoutingKey(id_, topic, queue, priority))


@lru_cache(4096)
def _place(place: bytes) -> tuple[Priority, str]:
    """What `place_of` has put together."""
    text = place.decode(errors="replace")
    try:
        return _PRIORITIES[text[:1]], check_name(text[1:], "topic")
    except (KeyError, ValueError) as error:
        raise CorruptMessageError(f"the message is not in repid's format: it begins with {place[:64]!r}") from error


def stamp_of(record: bytes) -> bytes:
    """What `Stamps` gave it."""
    start = record.find(b"\n") + 1
    return record[start : start + STAMP]


def encode_death(death: Death) -> str:
    """A death in one line."""
    return _dumps(death_fields(death))


def decode_dead(dead: bytes) -> tuple[str, bytes, Death | None]:
    """Id and record of a dead message, and how it died; None if that cannot be read."""
    id_, text, record = dead.split(b"\n", 2)
    try:
        death = death_from_fields(json.loads(text))
        if death.reason is DeathReason.POISON:  # the scripts do not look into messages
            death = evolve(death, attempts=death.attempts + decode(record, id_.decode(), "_").parameters.tried)
    except (ValueError, TypeError, CodecError):
        return id_.decode(), record, None
    return id_.decode(), record, death
