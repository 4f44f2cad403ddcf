"""What is said of an error: its type and where it was raised, and its text only where that is asked for."""

from __future__ import annotations

import traceback

from opentelemetry.trace import Span, Status, StatusCode

from repid_opentelemetry import conventions as names


def type_of(error: BaseException) -> str:
    """The qualified name of an error's class."""
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def record(span: Span, error: BaseException, *, texts: bool) -> None:
    """Set a span's status, and add the exception as an event."""
    kind = type_of(error)
    span.set_attribute(names.ERROR_TYPE, kind)
    if texts:
        span.record_exception(error)
        span.set_status(Status(StatusCode.ERROR, f"{kind}: {error}"))
        return
    stack = "".join(traceback.format_tb(error.__traceback__))  # lines of code, in which no value is
    span.add_event(names.EXCEPTION, {names.EXCEPTION_TYPE: kind, names.EXCEPTION_STACKTRACE: stack})
    span.set_status(Status(StatusCode.ERROR, kind))
