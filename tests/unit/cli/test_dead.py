"""`repid dead`."""

from __future__ import annotations

from datetime import timedelta

import pytest

from repid_core import Capability, InMemoryBucketBroker, InMemoryMessageBroker, MessageCategory
from repid_core.cli.dead import list_, purge, retry, show
from repid_core.errors import BrokerConnectionError, BucketConnectionError, CorruptMessageError
from repid_core.memory.consumer import InMemoryDelivery

DEAD, NORMAL = MessageCategory.DEAD, MessageCategory.NORMAL


@pytest.fixture(params=["browse", "consume"])
def way(request, monkeypatch):
    """How the dead are looked at: brokers without BROWSE give them out, and take them back."""
    if request.param == "consume":
        monkeypatch.setattr(InMemoryMessageBroker, "capabilities", frozenset(Capability) - {Capability.BROWSE})
        monkeypatch.setattr("repid_core.cli.redrive._QUIET", 0.3)
    return request.param


def test_the_list_has_the_oldest_first(shop, way, fits):
    shop.bury("one", "two")
    shop.bury("three", topic="other")
    rows = shop.lines("dead", "list")
    assert all(fits(list_.shape, [row]) for row in rows)
    assert [row["id"] for row in rows] == ["one", "two", "three"]
    assert rows[0] | {"at": None} == {
        "queue": "mail",
        "id": "one",
        "actor": "greet",
        "reason": "failed",
        "at": None,
        "attempts": 1,
        "error": "ValueError: no stamps",
    }
    assert [row["id"] for row in shop.lines("dead", "list", "--limit", "1")] == ["one"]
    assert [row["id"] for row in shop.lines("dead", "list", "-t", "other", "-q", "mail")] == ["three"]
    shown = shop("dead", "list", "--queue", "mail")
    assert len(shown.stdout.splitlines()) == 4
    assert shown.stderr == "3 dead jobs.\n"
    assert shop.ids(DEAD) == ["one", "two", "three"]


def test_one_is_shown_whole_and_its_arguments_when_asked_for(shop, way, fits):
    shop.bury("one", args={"user_id": 1, "name": "confidential"})
    told = shop.json("dead", "show", "one")
    assert fits(show.shape, told)
    assert told["error"] == "Traceback\nValueError: no stamps"
    plain = shop("dead", "show", "one").stdout
    assert plain.endswith("\nTraceback\nValueError: no stamps\n")
    assert "confidential" not in plain
    assert shop.json("dead", "show", "one", "--arguments")["arguments"] == {"user_id": 1, "name": "confidential"}
    assert "no dead job has id 'two'" in shop("dead", "show", "two", status=3).output


def test_all_are_retried_with_their_attempts_before_them(shop, way, fits):
    shop.bury(*(f"id{number}" for number in range(250)), retries=3)
    assert shop("dead", "retry", "--queue", "mail").stdout == "mail: 250 dead jobs retried, 0 left\n"
    assert shop.ids(DEAD) == []
    assert sorted(shop.ids(NORMAL)) == sorted(f"id{number}" for number in range(250))
    told = shop.lines("dead", "retry")
    assert fits(retry.shape, told)
    assert told[0]["retried"] == 0


def test_a_dry_run_counts_and_changes_nothing(shop, way, fits):
    shop.bury("one", "two")
    [told] = shop.lines("dead", "retry", "--dry-run")
    assert fits(retry.shape, [told])
    assert (told["matching"], told["retried"]) == (2, 0)
    assert shop("dead", "retry", "--dry-run").stdout == "mail: 2 dead jobs would be retried\n"
    [told] = shop.lines("dead", "purge", "--dry-run", "--topic", "greet")
    assert told["matching"] == (2 if way == "browse" else None)
    assert shop.ids(DEAD) == ["one", "two"]


@pytest.mark.parametrize("command", ["retry", "purge"])
def test_topics_and_age_choose_some(shop, way, command):
    yes = ["--yes"] if command == "purge" else []
    shop.bury("old", "other", age=timedelta(hours=2))
    shop.bury("old-tidy", topic="tidy", age=timedelta(hours=2))
    shop.bury("young")
    shop("dead", command, *yes, "--queue", "mail", "--topic", "tidy")
    assert sorted(shop.ids(DEAD)) == ["old", "other", "young"]
    shop("dead", command, *yes, "--queue", "mail", "--older-than", "1 hour")
    assert shop.ids(DEAD) == ["young"]
    assert len(shop.ids(NORMAL)) == (3 if command == "retry" else 0)


def test_purge_asks_first(shop, fits):
    shop.bury("one", "two")
    result = shop("dead", "purge", "--queue", "mail", input="n\n", status=1)
    assert "Remove dead jobs of mail for good?" in result.output
    assert shop.ids(DEAD) == ["one", "two"]
    assert shop("dead", "purge", input="y\n").stdout == "mail: 2 dead jobs purged, 0 left\n"
    assert fits(purge.shape, shop.lines("dead", "purge", "--yes"))
    assert shop.ids(DEAD) == []


def test_those_whose_id_is_live_again_are_left_and_the_others_are_not_held_up(shop, way):
    shop.bury("one", "two", "three")
    shop("enqueue", "greet", "-q", "mail", "--id", "two")
    result = shop("dead", "retry", "-q", "mail", status=1)
    assert result.stdout == "mail: 2 dead jobs retried, 1 left\n"
    assert "1 left, for a live job has the same id" in result.stderr
    assert shop.ids(DEAD) == ["two"]


def test_those_that_die_again_meanwhile_are_left(shop, monkeypatch):
    """A job that fails at once would otherwise be retried for ever."""
    shop.bury("one", "two")
    requeue = InMemoryDelivery.requeue

    async def and_dies_again(self, envelope):
        await requeue(self, envelope)
        broker = shop.connection.message_broker
        consumer = broker.consumer("mail", None, prefetch=1)
        await consumer.start()
        [again] = await consumer.receive(1)
        await again.nack(self.death)
        await consumer.close()

    monkeypatch.setattr(InMemoryDelivery, "requeue", and_dies_again)
    assert shop("dead", "retry", "-q", "mail").stdout == "mail: 2 dead jobs retried, 2 left\n"


def test_a_broker_that_goes_away_leaves_all_where_it_is_or_was_to_be(shop, monkeypatch):
    shop.bury(*(f"id{number}" for number in range(150)))
    requeue = InMemoryDelivery.requeue

    async def shaky(self, envelope):
        if envelope.key.id_ == "id120":
            raise BrokerConnectionError("it is away")
        await requeue(self, envelope)

    monkeypatch.setattr(InMemoryDelivery, "requeue", shaky)
    result = shop("dead", "retry", "-q", "mail", status=1)
    assert result.output == "Error: mail: 149 jobs retried, then: it is away; the same command goes on from here\n"
    assert sorted(shop.ids(DEAD) + shop.ids(NORMAL)) == sorted(f"id{number}" for number in range(150))
    monkeypatch.undo()


def test_one_that_cannot_be_read_is_listed_and_left_and_can_be_removed(shop, monkeypatch):
    shop.bury("one", "bad", "three")
    envelope, browse = InMemoryDelivery.envelope, InMemoryMessageBroker.browse

    def read(self):
        if envelope.fget(self).key.id_ == "bad":
            raise CorruptMessageError
        return envelope.fget(self)

    async def browse_until(self, *args, **options):
        async for found in browse(self, *args, **options):
            if found.envelope.key.id_ == "bad":
                raise CorruptMessageError
            yield found

    monkeypatch.setattr(InMemoryDelivery, "envelope", property(read))
    monkeypatch.setattr(InMemoryMessageBroker, "browse", browse_until)
    monkeypatch.setattr("repid_core.cli.redrive._QUIET", 0.3)
    assert [row["id"] for row in shop.lines("dead", "list")] == ["one", "?", "three"]
    assert [row["id"] for row in shop.lines("dead", "list", "--topic", "greet")] == ["one", "three"]
    result = shop("dead", "retry", "-q", "mail", "--older-than", "0 s", status=1)
    assert result.stdout == "mail: 2 dead jobs retried, 1 left\n"
    assert "1 left, for they cannot be read" in result.stderr
    assert shop("dead", "purge", "-q", "mail", "--yes").stdout == "mail: 1 dead job purged, 0 left\n"


def test_more_than_a_hand_holds_that_are_to_be_left(shop, monkeypatch):
    """Younger ones come last, so behind a handful of them there is nothing that is meant; others may hide what is."""
    monkeypatch.setattr(InMemoryMessageBroker, "capabilities", frozenset(Capability) - {Capability.BROWSE})
    monkeypatch.setattr("repid_core.cli.redrive._WINDOW", 10)
    ids = [f"id{number}" for number in range(25)]
    shop.bury(*ids)
    assert shop("dead", "retry", "-q", "mail", "--older-than", "1 h").output == "mail: 0 dead jobs retried, 25 left\n"
    for id_ in ids:
        shop("enqueue", "greet", "-q", "mail", "--id", id_)
    result = shop("dead", "retry", "-q", "mail", status=1)
    assert result.stdout == "mail: 0 dead jobs retried, 25 left\n"
    assert "the others cannot be reached" in result.stderr
    assert shop.ids(DEAD) == ids


def test_only_the_message_broker_has_to_be_there(shop, monkeypatch):
    async def away(self):
        raise BucketConnectionError("it is away")

    shop.bury("one")
    monkeypatch.setattr(InMemoryBucketBroker, "connect", away)
    for words in (["list"], ["show", "one"], ["purge", "--dry-run"], ["retry"]):
        shop("dead", *words)
    shop("stats")
    assert "it is away" in shop("dead", "purge", "--yes", status=1).output
