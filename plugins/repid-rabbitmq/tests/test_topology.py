"""Names and the way through the levels, without a server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from pamqp import commands

from repid_core.data import Envelope, Parameters, Priority, RoutingKey
from repid_rabbitmq.settings import RabbitMessageBrokerSettings
from repid_rabbitmq.topology import LEVELS, Names, Topology, steps

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("delay", "wanted"),
    [
        (None, 0),
        (timedelta(seconds=-5), 0),
        (timedelta(0), 0),
        (timedelta(microseconds=1), 1),
        (timedelta(seconds=1), 1),
        (timedelta(milliseconds=1001), 2),
        (timedelta(days=365), 365 * 86_400),
        (timedelta(days=10_000), (1 << LEVELS) - 1),
    ],
)
def test_delays_are_rounded_up(delay: timedelta | None, wanted: int) -> None:
    assert steps(None if delay is None else NOW + delay, NOW) == wanted


def test_a_year_fits() -> None:
    assert timedelta(seconds=(1 << LEVELS) - 1) >= timedelta(days=365)


def matches(pattern: str, key: str) -> bool:
    """As topic exchanges do."""
    words, wanted = key.split("."), pattern.split(".")
    if wanted[-1] == "#":
        wanted.pop()
        words = words[: len(wanted)] if len(words) >= len(wanted) else [""]
    return len(words) == len(wanted) and all(w in ("*", word) for w, word in zip(wanted, words, strict=True))


@pytest.mark.parametrize("quorum", [False, True])
@pytest.mark.parametrize("seconds", [1, 2, 3, 5, 10, 86_399, 604_800, 365 * 86_400, (1 << LEVELS) - 1, 1 << (LEVELS - 1)])
@pytest.mark.parametrize("priority", list(Priority))
def test_every_delay_has_one_way_and_takes_its_time(seconds: int, priority: Priority, quorum: bool) -> None:
    """From exchange to level to exchange, the times of the levels add up, and it ends in the queue of its priority."""
    topology = Topology(RabbitMessageBrokerSettings(queue_type="quorum" if quorum else "classic"))
    names = topology.names("q")
    made = topology._levels(names)
    bindings = [frame for frame in made if isinstance(frame, commands.Queue.Bind)]
    levels = {frame.queue: frame.arguments or {} for frame in made if isinstance(frame, commands.Queue.Declare)}
    envelope = Envelope(RoutingKey("id", "work", "q", priority), Parameters(NOW))
    place, key = topology.way(envelope, seconds)
    spent = 0
    while True:
        to = {bind.queue for bind in bindings if bind.exchange == place and matches(bind.routing_key or "", key)}
        assert len(to) == 1, f"{place} sends {key} to {to}"
        [queue] = to
        if queue not in levels:
            break
        spent += int(str(levels[queue]["x-message-ttl"]))
        place = str(levels[queue]["x-dead-letter-exchange"])
    assert spent == seconds * 1000
    assert queue == names.main(priority)


def test_names_do_not_mix() -> None:
    """Whatever queues are called, nothing of one is called as something of another."""
    every: list[str] = []
    for queue in ("a", "a.dead", "a.delay", "dead", "a-high", "a.v1", "v1"):
        names = Names(f"p.v1:{queue}", quorum=True)
        every += [*names.mains, names.dead, names.delays, names.deaths("x")]
        every += [names.level(bit) for bit in range(LEVELS)] + [names.exchange(bit) for bit in range(LEVELS + 1)]
    assert all(one != other for one, other in pairwise(sorted(every)))


def test_the_longest_names_fit() -> None:
    names = Topology(RabbitMessageBrokerSettings(prefix="p" * 64)).names("q" * 128)
    assert max(len(name) for name in (names.deaths("x" * 256), names.level(24), names.dead)) <= 255
