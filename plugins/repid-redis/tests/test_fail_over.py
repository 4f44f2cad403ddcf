"""Messages and buckets through Sentinel and Cluster, while nodes fail and slots move."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import count

import pytest

from repid_core import Connection, Job, Router, Worker
from repid_core.errors import EnqueueError, MessageBrokerError
from repid_redis import RedisBucketBroker, RedisMessageBroker
from servers import Cluster, Sentinels, Server

SECOND = timedelta(seconds=1)


def router_for(queues: list[str], done: list[int]) -> Router:
    """An actor `work-<queue>` for each."""
    router = Router()

    async def work(i: int) -> int:
        done.append(i)
        return i

    for queue in queues:
        router.actor(name=f"work-{queue}", queue=queue)(work)
    return router


@pytest.mark.faults
class TestCluster:
    async def test_jobs_and_results_on_all_nodes(self, cluster: Cluster) -> None:
        """Queues and buckets spread over the nodes; a job finds its arguments and its result wherever they are."""
        queues = [f"q{number}" for number in range(6)]
        done: list[int] = []
        buckets = RedisBucketBroker(cluster.url)
        async with Connection(RedisMessageBroker(cluster.url), buckets, buckets) as connection:
            jobs = [
                Job(f"work-{queue}", queue, args={"i": i}, connection=connection, use_args_bucketer=True)
                for i in range(20)
                for queue in queues
            ]
            await connection.enqueue_many(jobs)
            worker = Worker([router_for(queues, done)], messages_limit=len(jobs), connection=connection, handle_signals=())
            summary = await worker.run()
            assert summary.succeeded == len(jobs)
            assert [await job.wait(5) for job in jobs] == [i for i in range(20) for _ in queues]
            for queue in queues:
                await connection.message_broker.delete_queue(queue)
        spread = []
        for node in cluster.nodes:
            with node.client() as client:
                spread.append(sum(1 for _ in client.scan_iter("repid:bucket:*")))
                assert not [key for key in client.scan_iter("repid:{*") if b"}:w!" not in key], "a deleted queue left keys"
        assert all(spread), spread

    async def test_a_slot_that_moves_takes_its_queue_along(self, cluster: Cluster) -> None:
        """Calls wait while the keys of the queue are on their way, and go on at their new node."""
        done: list[int] = []
        broker = RedisMessageBroker(cluster.url)
        async with Connection(broker) as connection:
            await connection.enqueue_many(
                [Job("work-moving", "moving", args={"i": i}, connection=connection) for i in range(100)]
            )
            base = broker.base("moving")
            with cluster.nodes[0].client() as client:
                slot = client.execute_command("CLUSTER", "KEYSLOT", base)
            node_ids = {}
            for node in cluster.nodes:
                with node.client() as client:
                    node_ids[node.port] = client.execute_command("CLUSTER", "MYID").decode()
            owner = next(node for node in cluster.nodes if slot in range(*_slots_of(cluster, node)))
            other = next(node for node in cluster.nodes if node is not owner)
            worker = Worker([router_for(["moving"], done)], messages_limit=200, connection=connection, handle_signals=())
            running = asyncio.create_task(worker.run())

            async def produce() -> None:
                for i in range(100, 200):
                    await Job("work-moving", "moving", args={"i": i}, connection=connection).enqueue()
                    await asyncio.sleep(0.005)

            producing = asyncio.create_task(produce())
            await asyncio.sleep(0.1)  # so that the slot moves in the middle of it
            await asyncio.to_thread(_move, slot, owner, other, node_ids)
            await producing
            async with asyncio.timeout(20):
                await running
            assert sorted(set(done)) == list(range(200))
            await broker.delete_queue("moving")


def _slots_of(cluster: Cluster, node: object) -> tuple[int, int]:
    number = cluster.nodes.index(node)  # type: ignore[arg-type]
    return 16384 * number // 3, 16384 * (number + 1) // 3


def _move(slot: int, owner, other, ids) -> None:  # type: ignore[no-untyped-def]
    """As `redis-cli --cluster reshard` does."""
    with owner.client() as source, other.client() as target:
        target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[owner.port])
        source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[other.port])
        while keys := source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 10):
            source.execute_command("MIGRATE", "127.0.0.1", other.port, "", 0, 5000, "KEYS", *keys)
        for client in (target, source):
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[other.port])


@pytest.mark.faults
class TestSentinel:
    async def test_a_fail_over_is_survived(self, sentinels: Sentinels) -> None:
        """The primary is killed. Nothing that the replica has is lost; worker and producer go on by themselves."""
        done: list[int] = []
        numbers = count()
        broker = RedisMessageBroker(sentinels.url, lease=2 * SECOND)
        async with Connection(broker) as connection:
            worker = Worker([router_for(["q"], done)], connection=connection, handle_signals=())
            running = asyncio.create_task(worker.run())
            confirmed: list[int] = []

            async def produce(many: int) -> None:
                while many:
                    number = next(numbers)
                    try:
                        await Job("work-q", "q", args={"i": number}, connection=connection).enqueue()
                    except MessageBrokerError:
                        continue
                    confirmed.append(number)
                    many -= 1

            await produce(200)
            with sentinels.primary.client() as client:
                assert client.wait(1, 5000) == 1
            sentinels.primary.kill()
            async with asyncio.timeout(30):
                await produce(200)
            assert _is_primary(sentinels.replica)
            async with asyncio.timeout(15):
                while not set(confirmed) <= set(done):
                    await asyncio.sleep(0.05)
            worker.stop()
            await running
            stats = await broker.queue_stats("q")
            assert (stats.ready, stats.in_progress) == (0, 0)

    async def test_enqueue_waits_for_replicas(self, sentinels: Sentinels) -> None:
        broker = RedisMessageBroker(sentinels.url, wait_replicas=1, reply_deadline=SECOND)
        async with Connection(broker) as connection:
            await Job("work-q", "q", connection=connection).enqueue()
            sentinels.replica.pause()
            with pytest.raises(EnqueueError, match="0 of the 1 replicas that wait_replicas asks for") as caught:
                await Job("work-q", "q", connection=connection).enqueue()
            assert caught.value.maybe_enqueued
            sentinels.replica.resume()
            await broker.delete_queue("q")


def _is_primary(server: Server) -> bool:
    with server.client() as client:
        return client.role()[0] in (b"master", "master")
