"""RabbitMQ for repid-core: a message broker.

`pip install repid-rabbitmq`, and choose `rabbitmq` by name or make the broker by hand::

    from repid_rabbitmq import RabbitMessageBroker

    Connection(RabbitMessageBroker("amqp://guest:guest@localhost/"))
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from repid_core import Backend, MessageBroker, hookimpl

if TYPE_CHECKING:
    from repid_rabbitmq.message_broker import RabbitMessageBroker
    from repid_rabbitmq.settings import RabbitMessageBrokerSettings

__all__ = ["RabbitMessageBroker", "RabbitMessageBrokerSettings"]

_HOMES = {
    "RabbitMessageBroker": "repid_rabbitmq.message_broker",
    "RabbitMessageBrokerSettings": "repid_rabbitmq.settings",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # what imports the protocol's library waits until it is wanted
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@hookimpl
def repid_register_message_brokers() -> Iterable[Backend[MessageBroker]]:
    """The broker that carries messages through RabbitMQ."""
    return [
        Backend(
            "rabbitmq",
            factory="repid_rabbitmq.message_broker:RabbitMessageBroker.from_settings",
            settings="repid_rabbitmq.settings:RabbitMessageBrokerSettings",
            url_schemes=("amqp", "amqps"),
            summary="Messages in RabbitMQ, on classic or quorum queues, with delays to the second.",
        )
    ]
