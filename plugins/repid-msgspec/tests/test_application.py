"""Workers read what producers wrote, whichever serializer is their own."""

from __future__ import annotations

import pytest

from repid_core import Connection, InMemoryBucketBroker, InMemoryMessageBroker, Job, Repid, Router, Worker

NAMES = ["json", "msgpack", "msgspec-json"]


@pytest.mark.parametrize("reads", NAMES)
@pytest.mark.parametrize("writes", NAMES)
async def test_a_worker_reads_what_others_wrote(writes: str, reads: str) -> None:
    router = Router()

    @router.actor
    async def double(data: bytes) -> bytes:
        return 2 * data

    messages, results = InMemoryMessageBroker(), InMemoryBucketBroker()

    def app(serializer: str) -> Repid:
        return Repid(Connection(messages, None, results, serializer=serializer))

    job = Job.of(double)(data=b"\x00\xff")
    async with app(writes).magic(auto_disconnect=True):
        await job.enqueue()
    async with app(reads).magic(auto_disconnect=True):
        await Worker([router], messages_limit=1, handle_signals=()).run()
    async with app(writes).magic(auto_disconnect=True):
        assert await job.wait(timeout=10) == b"\x00\xff\x00\xff"
