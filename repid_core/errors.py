"""Every error that repid raises, in one tree.

A class's docstring is its message when none is given, so each remedy is written once::

    RepidError
    ├── UsageError
    │   ├── NoConnectionError  NotConnectedError  AlreadyConnectedError  WrongEventLoopError
    │   ├── AlreadySettledError
    │   └── InvalidJobError (ValueError)  InvalidActorError (TypeError)
    ├── ConfigError
    │   └── UnknownBackendError  PluginLoadError  SettingsError
    ├── UnsupportedFeatureError
    ├── MessageBrokerError
    │   ├── BrokerConnectionError  DeliveryLostError
    │   ├── EnqueueError ── DuplicateJobError, PayloadTooLargeError
    │   └── EnqueueManyError
    ├── BucketBrokerError
    │   └── BucketConnectionError  CorruptBucketError  (PayloadTooLargeError)
    ├── CodecError
    │   └── CorruptMessageError  NewerFormatError
    ├── SerializationError
    ├── ConversionError
    ├── ActorProcessError
    ├── JobFailedError
    ├── ResultTimeoutError (TimeoutError)
    └── CallTimeoutError (TimeoutError)

`ActorEnded` stands outside: it is the `BaseException` that an eager response raises to leave an actor.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any


class RepidError(Exception):
    """Something in repid went wrong."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.cleandoc(type(self).__doc__ or ""))

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are pickled as a call with their `args`, which is not what the constructors below take.
        return _restored, (type(self), self.args), self.__dict__


def _restored(kind: type[RepidError], args: tuple[Any, ...]) -> RepidError:
    error = kind.__new__(kind)
    error.args = args
    return error


class UsageError(RepidError):
    """The call does not fit the object's state."""


class NoConnectionError(UsageError):
    """There is no connection in reach: pass `connection=…`, or make the call inside `async with Repid(connection).magic():`."""


class NotConnectedError(UsageError):
    """The connection is not open: `await connection.connect()` first, or use `async with connection:`."""


class AlreadyConnectedError(UsageError):
    """The connection is open already: connect once, and share the connection between tasks."""


class WrongEventLoopError(UsageError):
    """The connection was opened on another event loop, or before a fork: open one connection for each loop and process."""


class AlreadySettledError(UsageError):
    """The message has been settled already: only the first ack, nack, reject or requeue counts."""


class InvalidJobError(UsageError, ValueError):
    """The job is not valid."""


class InvalidActorError(UsageError, TypeError):
    """The function cannot be an actor."""


class ConfigError(RepidError):
    """The configuration is not valid."""


class UnknownBackendError(ConfigError):
    """No installed plugin offers a backend of this name: `pip install` the plugin, or correct the name."""


class PluginLoadError(ConfigError):
    """A plugin is installed but cannot be used: upgrade or uninstall it, or leave it out with REPID_DISABLE_PLUGINS."""


class SettingsError(ConfigError):
    """The settings are not valid."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(("invalid settings:", *(f"  {problem}" for problem in self.problems))))


class UnsupportedFeatureError(RepidError):
    """The broker does not offer a feature that was asked for."""

    def __init__(self, capability: object, backend: object, remedy: str = "choose a broker that declares it") -> None:
        self.capability, self.backend = capability, backend
        name = getattr(capability, "name", capability)
        super().__init__(f"{type(backend).__name__} does not support {name}: {remedy}")


class MessageBrokerError(RepidError):
    """The message broker failed."""


class BrokerConnectionError(MessageBrokerError):
    """The message broker cannot be reached: check that it runs, and its URL."""


class DeliveryLostError(MessageBrokerError):
    """The delivery's lease was lost, and the message may be with another worker: nothing was settled."""


class EnqueueError(MessageBrokerError):
    """The message was not enqueued.

    `maybe_enqueued` is True if the connection failed after sending, so that the message may be in the queue all the same.
    """

    def __init__(self, message: str | None = None, *, maybe_enqueued: bool = False) -> None:
        self.maybe_enqueued = maybe_enqueued
        super().__init__(message)


class DuplicateJobError(EnqueueError):
    """A job of this id is in the queue."""

    def __init__(self, id_: str, state: str) -> None:
        self.id_, self.state = id_, state
        super().__init__(
            f"a job with id {id_!r} is {state} already: wait for it, cancel it, choose another id, "
            "or pass on_duplicate='keep' or 'replace'",
        )


class EnqueueManyError(MessageBrokerError):
    """Some of the jobs were not enqueued; `outcomes` has a receipt or an error for each, in order."""

    def __init__(self, outcomes: Sequence[Any]) -> None:
        self.outcomes = tuple(outcomes)
        failed = [outcome for outcome in self.outcomes if isinstance(outcome, Exception)]
        super().__init__(f"{len(failed)} of {len(self.outcomes)} jobs were not enqueued; the first: {failed[0]}")


class BucketBrokerError(RepidError):
    """The bucket broker failed."""


class BucketConnectionError(BucketBrokerError):
    """The bucket store cannot be reached: check that it runs, and its URL."""


class CorruptBucketError(BucketBrokerError):
    """The bucket is truncated, or was not written by repid."""


class PayloadTooLargeError(EnqueueError, BucketBrokerError):
    """The payload is larger than the store takes."""

    def __init__(self, size: int, limit: int, remedy: str = "pass large arguments through an args bucket broker") -> None:
        self.size, self.limit = size, limit
        super().__init__(f"the payload has {size:,} bytes and the limit is {limit:,}: {remedy}")


class CodecError(RepidError):
    """The bytes cannot be decoded."""


class CorruptMessageError(CodecError):
    """The message is truncated, or was not written by repid."""


class NewerFormatError(CodecError):
    """The data was written by a newer version of repid: upgrade repid-core in this process. The data is kept."""


class SerializationError(RepidError):
    """The value cannot be serialized."""


class ConversionError(RepidError):
    """The arguments do not fit the actor's signature; `problems` lists each with its path."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


class ActorProcessError(RepidError):
    """The actor's process ended before the actor did."""


class JobFailedError(RepidError):
    """The job failed; `bucket` is its result, with the remote exception's name and traceback."""

    def __init__(self, bucket: Any) -> None:
        self.bucket = bucket
        super().__init__("\n".join(filter(None, (f"the job failed: {bucket.exception}", bucket.traceback))))


class ResultTimeoutError(RepidError, TimeoutError):
    """No result came in time: the job may still be queued or running, or does not store its result."""


class CallTimeoutError(RepidError, TimeoutError):
    """The synchronous call took longer than its timeout, and was cancelled: what it has sent may have arrived all the same."""


class ActorEnded(BaseException):
    """Leaves an actor after it has settled its own message; actors let it pass."""
