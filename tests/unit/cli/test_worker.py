"""What worker the command makes, and how it logs; how it runs is tested with processes."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from io import StringIO
from types import ModuleType
from typing import Any

import pytest

from repid_core.cli.group import Failure
from repid_core.cli.logs import JSONFormatter, TextFormatter, set_up
from repid_core.cli.options import loop_factory
from repid_core.cli.worker import Plan, assembled

MORE = """
from shop import *
mine = Worker([router], tasks_limit=7, connection=connection)
bare = Worker([router, other], graceful_shutdown_time=3)
"""


def plan(*targets: str, **options: Any) -> Plan:
    defaults = dict.fromkeys(("config", "concurrency", "threads", "grace")) | {
        "app": "shop:app",
        "queues": (),
        "loop": "auto",
        "log_format": "text",
        "log_level": "info",
    }
    return Plan(targets=targets, **(defaults | options))


@pytest.fixture(autouse=True)
def workers(shop, tmp_path, monkeypatch):
    (tmp_path / "workers.py").write_text(MORE)
    monkeypatch.delitem(sys.modules, "workers", raising=False)


def test_routers_are_put_together(shop):
    worker, connection = assembled(plan("shop:router", "shop:other", concurrency=5, threads=8, grace=1.5))
    assert set(worker.actors) == {"greet", "tidy"}
    assert (worker.tasks_limit, worker.threads, worker.graceful_shutdown_time) == (5, 8, 1.5)
    assert connection is shop.connection


def test_a_worker_keeps_what_is_not_said(shop):
    worker, connection = assembled(plan("workers:mine", app=None))
    assert (worker.tasks_limit, connection) == (7, shop.connection)
    worker, _ = assembled(plan("workers:bare", concurrency=2))
    assert (worker.tasks_limit, worker.graceful_shutdown_time) == (2, 3)


def test_some_queues_may_be_served_alone(shop):
    worker, _ = assembled(plan("shop:router", "shop:other", queues=("mail",)))
    assert worker.queues == {"mail": frozenset({"greet"})}
    with pytest.raises(Failure, match="no actor has queue male: there are default, mail"):
        assembled(plan("shop:router", "shop:other", queues=("mail", "male")))


@pytest.mark.parametrize(
    ("targets", "text"),
    [
        (("workers:mine",), "the worker has a connection of its own: leave out --app and --config"),
        (("workers:bare", "shop:router"), "a Worker stands alone: give it, or routers"),
        (("shop:app",), "'shop:app' is a Repid, and no router or worker"),
    ],
)
def test_what_does_not_go_together_is_said(shop, targets, text):
    with pytest.raises(Failure, match=text) as failure:
        assembled(plan(*targets))
    assert failure.value.exit_code == 2


def test_a_supervisor_passes_on_what_was_asked_for(shop):
    asked = {"queues": ("mail",), "concurrency": 5, "threads": 8, "grace": 0.5, "loop": "asyncio", "log_format": "json"}
    words = plan("shop:router", **asked).arguments()
    expected = "worker shop:router --loop asyncio --log-format json --log-level info --app shop:app"
    limits = "--concurrency 5 --threads 8 --grace 0.5 --queue mail"
    assert words == f"{expected} {limits}".split()


@pytest.fixture
def record() -> logging.LogRecord:
    made = logging.LogRecord("repid_core.processing", logging.ERROR, "", 0, "%s failed", ("greet",), None)
    made.job, made.queue, made.attempt = "id1", "mail", None
    return made


def test_people_get_a_line(record):
    line = TextFormatter("worker 2").format(record)
    assert line[12:] == " ERROR   worker 2 greet failed  job=id1 queue=mail"
    assert "\x1b[31mERROR  \x1b[0m" in TextFormatter(colour=True).format(record)


def test_programs_get_json(record):
    record.exc_info = (ValueError, ValueError("no stamps"), None)
    said = json.loads(JSONFormatter("worker 2").format(record))
    assert said.pop("time").endswith("+00:00")
    assert said.pop("exception").endswith("ValueError: no stamps")
    assert isinstance(said.pop("process"), int)
    assert said == {
        "level": "error",
        "logger": "repid_core.processing",
        "message": "greet failed",
        "worker": "worker 2",
        "job": "id1",
        "queue": "mail",
        "attempt": None,
    }


def test_logging_is_the_applications_own_if_that_is_asked_for(monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    monkeypatch.setattr(root, "level", root.level)
    before = list(root.handlers)
    set_up("none", "debug")
    assert root.handlers == before
    stream = StringIO()
    set_up("json", "warning", stream=stream)
    logging.captureWarnings(capture=False)
    logging.getLogger("shop").warning("low on paper", extra={"pages": 3})
    logging.getLogger("shop").info("not this")
    assert json.loads(stream.getvalue())["pages"] == 3


def test_uvloop_is_used_where_it_is_installed_and_asked_for_where_it_is_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert loop_factory("auto") is loop_factory("asyncio") is None
    with pytest.raises(Failure, match="uvloop is not installed: pip install uvloop"):
        loop_factory("uvloop")
    fake = ModuleType("uvloop")
    fake.new_event_loop = asyncio.new_event_loop
    monkeypatch.setitem(sys.modules, "uvloop", fake)
    assert loop_factory("auto") is loop_factory("uvloop") is asyncio.new_event_loop
    assert loop_factory("asyncio") is None


def test_reload_says_what_it_needs(shop, monkeypatch):
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    monkeypatch.setattr(root, "level", root.level)
    try:
        assert "--reload needs watchfiles: pip install watchfiles" in shop("worker", "shop:router", "--reload", status=2).output
    finally:
        logging.captureWarnings(capture=False)
