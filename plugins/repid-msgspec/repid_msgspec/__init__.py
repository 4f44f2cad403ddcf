"""Serializers on msgspec for repid-core.

`pip install repid-msgspec`, and choose `msgpack` or `msgspec-json` by name or make the serializer by hand::

    from repid_msgspec import MsgpackSerializer

    Connection(broker, serializer=MsgpackSerializer())
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from repid_core import Backend, Serializer, hookimpl

if TYPE_CHECKING:
    from repid_msgspec.serializers import MsgpackSerializer, MsgspecJsonSerializer

__all__ = ["MsgpackSerializer", "MsgspecJsonSerializer"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # msgspec waits until it is wanted
        from repid_msgspec import serializers  # noqa: PLC0415 — as above

        return getattr(serializers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@hookimpl
def repid_register_serializers() -> Iterable[Backend[Serializer]]:
    """Both serializers."""
    return [
        Backend(
            "msgpack",
            factory="repid_msgspec.serializers:MsgpackSerializer",
            content_types=("application/vnd.msgpack", "application/msgpack", "application/x-msgpack"),
            summary="MessagePack: bytes and integer keys as they are, smaller than JSON, and faster to read.",
        ),
        Backend(
            "msgspec-json",
            factory="repid_msgspec.serializers:MsgspecJsonSerializer",
            content_types=("application/vnd.msgspec+json",),
            summary="The JSON of repid-core's own serializer, faster to read.",
        ),
    ]
