"""What a scraper sees."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.request import urlopen

from attrs import frozen
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from repid_core import WorkerSummary

Watch = Callable[..., Any]  # adds the middleware, with settings
Work = Callable[..., Awaitable[WorkerSummary]]  # runs so many deliveries


@frozen
class Scraped:
    """A registry's samples."""

    registry: CollectorRegistry

    def value(self, name: str, **labels: str) -> float | None:
        labels = {"queue": "default", "topic": "act", **labels}
        return self.registry.get_sample_value(name, {name: value for name, value in labels.items() if value})

    def depth(self, queue: str, state: str = "ready") -> float | None:
        return self.registry.get_sample_value("repid_queue_messages", {"queue": queue, "state": state})

    def labels(self) -> set[str]:
        return {name for family in self.registry.collect() for sample in family.samples for name in sample.labels}


def read(port: int | None) -> str:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
        text: str = page.read().decode()
    return text


async def scrape(port: int | None) -> str:
    return await asyncio.to_thread(read, port)


def sample(text: str, name: str, **labels: str) -> float | None:
    """The value of a sample in a page."""
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            if one.name == name and one.labels == labels:
                return float(one.value)
    return None
