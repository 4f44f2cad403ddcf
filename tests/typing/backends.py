"""What the kind of a backend tells a type checker; checked by mypy, never run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_type

from repid_core.abc import BucketBroker, Converter, MessageBroker, Serializer
from repid_core.hookspecs import Backend, hookimpl
from repid_core.plugins import Kind, plugins

assert_type(plugins().build(Kind.MESSAGE_BROKER, "memory"), MessageBroker)
assert_type(plugins().build(Kind.BUCKET_BROKER, "memory"), BucketBroker)
assert_type(plugins().build(Kind.SERIALIZER, "json"), Serializer)
assert_type(plugins().build(Kind.CONVERTER, "cattrs"), type[Converter])
assert_type(plugins().backend(Kind.SERIALIZER, "json"), Backend[Serializer])
assert_type(plugins().for_content_type("application/json"), Serializer)


@hookimpl
def repid_register_serializers() -> Iterable[Backend[Serializer]]:
    """A hook as plugins write it."""
    return [Backend("text", "plugin:Text", content_types=("text/plain",)), Backend("lines", text)]


def text() -> Serializer:
    """A factory."""
    return plugins().build(Kind.SERIALIZER, "json")


wrong: Backend[Serializer] = Backend("wrong", lambda: 3)  # type: ignore[arg-type, return-value]
plugins().build(Kind.SERIALIZER, Backend[MessageBroker]("wrong", "plugin:Broker"))  # type: ignore[misc]
