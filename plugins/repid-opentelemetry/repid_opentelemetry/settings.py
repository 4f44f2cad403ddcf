"""What can be set."""

from __future__ import annotations

from typing import Any, Literal

from attrs import Attribute, field, frozen


def _flag(_settings: Any, attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{attribute.name}={value!r}: give True or False")  # noqa: TRY004 — settings that are wrong are ValueErrors


def _relation(_settings: Any, _attribute: Attribute[Any], value: Any) -> None:
    if value not in {"child", "link"}:
        raise ValueError(f"consumer_span={value!r}: give 'child' or 'link'")


def _system(_settings: Any, _attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError(f"system={value!r}: give a text that is not empty, such as 'rabbitmq'")


@frozen
class OpenTelemetrySettings:
    """Settings of the middleware.

    Providers and the propagator are the process's own; the middleware takes others by hand.

    Attributes:
        consumer_span: "child" makes a run a child of the span that sent the job, in the same trace; "link" begins a trace for
            each run. Either has a link to the sender, and runs of recurring jobs are always linked only. Default: "child".
        batch_spans: Whether each job of `enqueue_many` has a span of its own, which its runs refer to; if not, they refer to that
            of the batch. Default: True.
        exception_texts: Whether messages of exceptions are recorded. They may quote arguments: without, there are the type
            and the stack, which do not. Default: False.
        metrics: Whether to measure as well. Default: True.
        system: The value of `messaging.system`. Default: "repid".
    """

    consumer_span: Literal["child", "link"] = field(default="child", kw_only=True, validator=_relation)
    batch_spans: bool = field(default=True, kw_only=True, validator=_flag)
    exception_texts: bool = field(default=False, kw_only=True, validator=_flag)
    metrics: bool = field(default=True, kw_only=True, validator=_flag)
    system: str = field(default="repid", kw_only=True, validator=_system)
