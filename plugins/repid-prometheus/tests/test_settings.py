"""What can be set, and how it is found by name."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest

from repid_core.plugins import Kind, plugins
from repid_prometheus import PrometheusMiddleware, PrometheusSettings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"port": 70000}, "port=70000: give a number from 0 to 65535, or None for no endpoint"),
        ({"address": ""}, "address='': give an address; '0.0.0.0' is every one"),
        ({"wait_buckets": [3, 2]}, "wait_buckets=(3, 2): give seconds above 0, each more than the one before"),
        ({"run_buckets": ()}, "run_buckets=(): give seconds above 0"),
        ({"run_buckets": (1, float("inf"))}, "run_buckets=(1, inf): give seconds above 0"),
        ({"queues": "mail"}, "queues='mail': give a list of names of queues"),
        ({"queue_depth": 1}, "queue_depth=1: give True or False"),
        ({"depth_interval": 15}, "depth_interval=15: give a timedelta of at least 10 ms"),
        ({"depth_timeout": timedelta(0)}, "depth_timeout=datetime.timedelta(0): give a timedelta of at least 10 ms"),
        ({"max_series": 0}, "max_series=0: give a whole number from 1 on"),
    ],
)
def test_mistakes(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        PrometheusSettings(**settings)


def test_by_name() -> None:
    settings = PrometheusSettings(port=0, queues=("mail",))
    middleware = plugins().build(Kind.MIDDLEWARE, "prometheus", settings)
    assert isinstance(middleware, PrometheusMiddleware)
    assert middleware.settings == settings
