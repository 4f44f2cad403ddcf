"""`repid plugins` and `repid check`."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from repid_core import InMemoryBucketBroker, InMemoryMessageBroker
from repid_core.cli.diagnosis import check, plugins
from repid_core.errors import BrokerConnectionError, BucketBrokerError


def test_plugins_are_listed_with_what_they_offer(shop, fits):
    result = shop("plugins", "--json", app=False, status=None)
    told = json.loads(result.stdout)
    assert fits(plugins.shape, told)
    offers = {
        (offer["kind"], offer["name"]) for plugin in told for offer in plugin["offers"] if plugin["distribution"] == "repid-core"
    }
    assert offers == {
        ("message broker", "memory"),
        ("bucket broker", "memory"),
        ("serializer", "json"),
        ("converter", "cattrs"),
    }
    assert "message broker  memory  Messages inside one process" in shop("plugins", app=False, status=None).stdout


def findings(shop, status: int = 0, *words: str) -> dict[str, str]:
    """What was found not to be well, by what it is of."""
    told = shop.json("check", *words, status=status)
    assert told["ok"] == (status == 0)
    return {finding["what"]: finding["detail"] for finding in told["findings"] if not finding["ok"]}


def test_all_is_well_and_nothing_is_left_behind(shop, fits):
    told = shop.json("check")
    assert fits(check.shape, told)
    steps = [finding["what"] for finding in told["findings"] if not finding["what"].startswith("plugin")]
    assert steps == [
        "repid-core",
        "configuration",
        "messages: connect",
        "messages: ping",
        "messages: declare a queue",
        "messages: enqueue",
        "messages: receive and acknowledge",
        "results: connect",
        "results: ping",
        "results: store a bucket",
        "results: read it",
        "results: delete it",
    ]
    assert shop("check").stderr == "All is well.\n"
    assert shop.json("queues") == []


def test_a_configuration_that_is_not_valid_is_a_problem_like_any_other(shop, tmp_path):
    (tmp_path / "repid.toml").write_text('[message_broker]\nbackend = "memroy"\n')
    result = shop("check", app=False, status=1)
    assert "did you mean 'memory'?" in result.stdout
    assert "PROBLEM  configuration" in result.stdout


def test_a_server_that_is_away_is_one_problem_and_the_others_are_looked_at(shop, monkeypatch):
    async def away(self):
        raise BrokerConnectionError("nobody answers: start it")

    monkeypatch.setattr(InMemoryMessageBroker, "connect", away)
    assert findings(shop, 1) == {"messages: connect": "InMemoryMessageBroker: nobody answers: start it"}


def test_a_step_that_fails_or_hangs_is_named_and_all_is_removed(shop, monkeypatch):
    async def refuse(self, *_):
        raise BucketBrokerError("access denied: grant it")

    async def hang(self, limit):
        await asyncio.Event().wait()

    monkeypatch.setattr(InMemoryBucketBroker, "store_bucket", refuse)
    monkeypatch.setattr("repid_core.memory.consumer.InMemoryConsumer.receive", hang)
    told = findings(shop, 1, "--timeout", "3 s")
    assert told["results: store a bucket"] == "access denied: grant it"
    assert told["messages: receive and acknowledge"].startswith("no answer within 3 s: ")
    assert shop.json("queues") == []


def test_a_fault_of_a_plugin_is_told_from_a_fault_of_the_server(shop, monkeypatch):
    async def fault(self):
        raise KeyError("oops")

    monkeypatch.setattr(InMemoryMessageBroker, "ping", fault)
    assert findings(shop, 1) == {"messages: ping": "KeyError: 'oops': report it to the authors of the plugin"}


@pytest.mark.parametrize(("seconds", "ok"), [(0, True), (3600, False), (-3600, False)])
def test_clocks_are_compared_where_the_store_tells_its_own(shop, monkeypatch, seconds, ok):
    async def tell(self):
        return datetime.now(UTC) + timedelta(seconds=seconds)

    monkeypatch.setattr(InMemoryMessageBroker, "server_time", tell)
    told = findings(shop, 0 if ok else 1)
    assert list(told) == ([] if ok else ["messages: clock"])
    if not ok:
        assert ("ahead of" if seconds > 0 else "behind") + " this machine" in told["messages: clock"]
        assert "NTP" in told["messages: clock"]
