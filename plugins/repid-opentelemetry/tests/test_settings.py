"""What can be set, and how it is found by name."""

from __future__ import annotations

import re
from typing import Any

import pytest

from repid_core.plugins import Kind, plugins
from repid_opentelemetry import OpenTelemetryMiddleware, OpenTelemetrySettings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"consumer_span": "parent"}, "consumer_span='parent': give 'child' or 'link'"),
        ({"system": ""}, "system='': give a text that is not empty, such as 'rabbitmq'"),
        ({"metrics": 1}, "metrics=1: give True or False"),
        ({"batch_spans": "no"}, "batch_spans='no': give True or False"),
        ({"exception_texts": None}, "exception_texts=None: give True or False"),
    ],
)
def test_mistakes(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        OpenTelemetryMiddleware(**settings)


def test_by_name() -> None:
    settings = OpenTelemetrySettings(consumer_span="link", system="redis")
    middleware = plugins().build(Kind.MIDDLEWARE, "opentelemetry", settings)
    assert isinstance(middleware, OpenTelemetryMiddleware)
    assert middleware.settings == settings
