"""The conformance suite for message brokers."""

from __future__ import annotations

from repid_core.testing.conformance.dead import DeadTests
from repid_core.testing.conformance.delivery import DeliveryTests
from repid_core.testing.conformance.identity import IdentityTests
from repid_core.testing.conformance.queues import QueueTests
from repid_core.testing.conformance.sharing import SharingTests
from repid_core.testing.conformance.timing import TimingTests
from repid_core.testing.conformance.working import WorkingTests


class MessageBrokerConformance(DeliveryTests, TimingTests, SharingTests, DeadTests, IdentityTests, QueueTests, WorkingTests):
    """Holds a message broker to the contract.

    Use it so::

        class TestMyBroker(MessageBrokerConformance):
            @pytest.fixture
            def make_broker(self, server):
                prefix = uuid.uuid4().hex
                return lambda: MyBroker(server.url, prefix=prefix, lease=timedelta(seconds=1))

    Every call of what the fixture gives makes another client of one namespace, which is fresh for each test. That is all
    there is to write; each of these may be overridden, and unlocks more:

    - `kill_consumer(broker, consumer)`: ends a consumer as `kill -9` would (M3, M5, M6, M13);
    - `break_connection(broker)` and `restore_connection(broker)`: the network goes and comes back (M17);
    - `address` and `secrets`: what errors must name and must not show;
    - `server`: what the store is, and its version, for the report;
    - `manual_clock()`: for brokers inside the process, a clock that the tests move instead of waiting;
    - `in_process = "why"`: the queue is in the client's memory, so that M20 cannot apply;
    - `patience`: how long a slow server may take for what should be there at once;
    - `deviations = {"test_name": "reason"}`: see `ConformanceSuite`.

    Tests whose capability the broker does not declare are skipped, and reported as "not declared". A broker that can be
    given a short lease should be: several tests wait for it, M4 ten times over.
    """
