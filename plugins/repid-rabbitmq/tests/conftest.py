"""Servers for the tests."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servers import Node, binary, greets

_LOCAL = "amqp://guest:guest@127.0.0.1:5672/"


def _lacking(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{what}: none was found, and none could be started")
    pytest.skip(f"{what}: none was found")


def _answers() -> bool:
    try:
        return greets("127.0.0.1", 5672)
    except OSError:
        return False


@pytest.fixture(scope="session")
def rabbitmq_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server that the environment names, else a local one, else one that is started."""
    named = os.environ.get("REPID_RABBITMQ_URL")
    if named is not None or _answers():
        yield named or _LOCAL
        return
    if binary("rabbitmq-server") is None:
        _lacking("a RabbitMQ server (set REPID_RABBITMQ_URL, or install rabbitmq-server)")
    node = Node(tmp_path_factory.mktemp("rabbitmq"))
    try:
        yield node.start().url
    finally:
        node.stop()


@pytest.fixture
def prefix() -> str:
    """For the names of one test."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Start a node of one's own: `serve("consumer_timeout = 5000")`."""
    nodes: list[Node] = []

    def start(config: str = "", **options: Any) -> Node:
        if binary("rabbitmq-server") is None:
            _lacking("a RabbitMQ server (install rabbitmq-server)")
        node = Node(tmp_path / f"node{len(nodes)}", config, **options)
        nodes.append(node)
        return node.start()

    yield start
    for node in nodes:
        node.stop()


@pytest.fixture(scope="session")
def _node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    if binary("rabbitmq-server") is None:
        _lacking("a RabbitMQ server (install rabbitmq-server)")
    node = Node(tmp_path_factory.mktemp("node"))
    try:
        yield node.start()
    finally:
        node.stop()


@pytest.fixture
def node(_node: Node) -> Node:
    """A node that tests may kill; it runs when the next one begins."""
    if _node.process is None or _node.process.poll() is not None:
        _node.start()
    return _node
