"""`repid queues` and `repid stats`."""

from __future__ import annotations

import asyncio
import json

import pytest

from repid_core import InMemoryMessageBroker, QueueStats
from repid_core.abc import MessageBroker
from repid_core.cli.queues import Sample, queues, stats
from repid_core.errors import BrokerConnectionError


def test_queues_are_those_of_the_broker_and_of_the_routers(shop, fits):
    shop("enqueue", "greet", "-q", "mail")
    assert fits(queues.shape, shop.json("queues"))
    assert shop.json("queues", "shop:router", "shop:other") == [
        {"queue": "default", "in_broker": False, "actors": ["tidy"]},
        {"queue": "mail", "in_broker": True, "actors": ["greet"]},
    ]
    lines = shop("queues", "shop:router", "shop:other").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["queue", "in", "broker", "actors"],
        ["default", "no", "tidy"],
        ["mail", "yes", "greet"],
    ]


def test_a_broker_that_cannot_list_them_says_what_to_do(shop, monkeypatch):
    monkeypatch.setattr(InMemoryMessageBroker, "queue_names", MessageBroker.queue_names)
    assert "InMemoryMessageBroker cannot list its queues: name routers" in shop("queues", status=2).output
    assert shop.json("queues", "shop:router") == [{"queue": "mail", "in_broker": None, "actors": ["greet"]}]
    assert "InMemoryMessageBroker cannot list its queues: name them, with --queue" in shop("stats", status=2).output
    assert len(shop.json("stats", "-q", "mail", "-q", "mail")["queues"]) == 1


def test_stats_count_each_queue(shop, fits):
    shop("enqueue", "greet", "-q", "mail")
    shop("enqueue", "greet", "-q", "mail", "--delay", "1 h")
    shop.bury("old", "older", queue="other")
    told = shop.json("stats")
    assert fits(stats.shape, told)
    counts = {row["queue"]: [row[state] for state in ("ready", "in_progress", "delayed", "dead")] for row in told["queues"]}
    assert counts == {"mail": [1, 0, 1, 0], "other": [0, 0, 0, 2]}
    assert shop("stats", "-q", "mail").stdout.splitlines()[1].split() == ["mail", "1", "0", "1", "0"]


def test_watching_gives_a_line_for_each_sample_with_rates(shop, fits):
    shop("enqueue", "greet", "-q", "mail")
    first, second = shop.lines("stats", "--watch", "--samples", "2", "--interval", "10 ms")
    assert fits(stats.shape, first)
    assert fits(stats.shape, second)
    assert first["queues"][0]["rates"] == dict.fromkeys(first["queues"][0]["rates"])
    assert second["queues"][0]["rates"] == dict.fromkeys(first["queues"][0]["rates"], 0.0)


def test_rates_are_changes_per_second():
    before = Sample({"mail": QueueStats(10, 0, None, 5)}, None)
    before.clock -= 2
    after = Sample({"mail": QueueStats(30, 0, 7, 5), "new": QueueStats(1, 1, 1, 1)}, before)
    ready = after.rates["mail"]["ready"]
    assert ready == round(20 / (after.clock - before.clock), 1)
    assert after.rates["mail"]["delayed"] is None
    assert after.rates["new"]["ready"] is None
    assert after.table()[1][0] == ["mail", f"30 ({ready:+.1f}/s)", "0", "7", "5"]


def test_watching_shows_a_table_and_goes_on_while_the_broker_is_away(shop, monkeypatch):
    asked = 0
    queue_stats = InMemoryMessageBroker.queue_stats

    async def shaky(self, queue):
        nonlocal asked
        asked += 1
        if asked == 2:
            raise BrokerConnectionError("it is away")
        return await queue_stats(self, queue)

    monkeypatch.setattr(InMemoryMessageBroker, "queue_stats", shaky)
    output = shop("stats", "-q", "mail", "--watch", "--samples", "3", "--interval", "1 ms").output
    assert asked == 3
    assert "mail" in output


@pytest.mark.parametrize("interval", ["0", "often"])
def test_an_interval_is_longer_than_none(shop, interval):
    shop("stats", "--interval", interval, status=2)


@pytest.mark.parametrize("words", [(), ("--json",)], ids=["table", "json"])
def test_watching_goes_on_until_it_is_interrupted_which_is_its_orderly_end(shop, monkeypatch, words):
    seen = 0
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def paused(seconds):
        nonlocal seen
        pauses.append(seconds)
        if (seen := seen + 1) == 5:
            raise KeyboardInterrupt
        await sleep(0)

    monkeypatch.setattr("repid_core.cli.queues.asyncio.sleep", paused)
    shop("stats", "--watch", "--interval", "3 s", *words)
    assert pauses == [3] * 5


def test_json_is_one_line(shop):
    assert json.loads(shop("stats", "--json").stdout)["queues"] == []
