"""What goes over the wire: how many requests, and what is in them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from hashlib import sha256
from typing import Any, Self

import pytest

from repid_core.errors import BucketBrokerError, CorruptBucketError, NewerFormatError, NotConnectedError, ResultTimeoutError
from repid_s3 import S3BucketBroker
from servers import Stub, bucket, on_both_servers, reply, session

HOUR = timedelta(hours=1)


class Counted:
    """A broker, and the requests that it makes."""

    def __init__(self, place: str, **settings: Any) -> None:
        self.seen: list[str] = []
        self.broker = S3BucketBroker(place, session=self._session(), **settings)

    def _session(self) -> Any:
        made = session()
        made.events.register("before-send.s3", lambda request, **_: self.seen.append(f"{request.method} {request.url}"))
        return made

    async def __aenter__(self) -> Self:
        await self.broker.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.broker.disconnect()


@on_both_servers
async def test_each_call_is_one_request(place: str) -> None:
    async with Counted(place) as first:
        assert [line.split()[0] for line in first.seen] == ["HEAD", "GET", "PUT", "GET"]  # the rules are put once
    async with Counted(place) as counted:
        assert [line.split()[0] for line in counted.seen] == ["HEAD", "GET"]
        counted.seen.clear()
        await counted.broker.store_bucket("a", b"1", HOUR)
        assert await counted.broker.get_bucket("a") == b"1"
        assert await counted.broker.wait_for("a", HOUR) == b"1"
        assert await counted.broker.get_bucket("none") is None
        await counted.broker.delete_bucket("a")
        assert [line.split()[0] for line in counted.seen] == ["PUT", "GET", "GET", "GET", "DELETE"]
        counted.seen.clear()
        await counted.broker.delete_many([f"b{n}" for n in range(1500)])
        assert [line.split()[0] for line in counted.seen] == ["POST", "POST"]


@on_both_servers
async def test_what_is_stored(place: str, client: Any) -> None:
    name = place.split("/")[2]
    async with Counted(place) as counted:
        broker = counted.broker
        await broker.store_bucket("a:b", b"data", timedelta(days=1, seconds=1))
        found = client.get_object(Bucket=name, Key="jobs/a%3Ab")
        assert found["Body"].read() == b"data"
        assert found["Metadata"]["repid-format"] == "1"
        assert abs(int(found["Metadata"]["repid-expires"]) / 1000 - time.time() - 86_401) < 60
        assert _tags(client, name, "jobs/a%3Ab") == {"repid-ttl": "d2"}
        await broker.store_bucket("a:b", b"data", None)
        assert client.get_object(Bucket=name, Key="jobs/a%3Ab")["Metadata"] == {"repid-format": "1"}
        assert _tags(client, name, "jobs/a%3Ab") == {}
        await broker.store_bucket(":" * 85, b"data", None)
        assert client.head_object(Bucket=name, Key=f"jobs/{'%3A' * 85}")
        await broker.store_bucket(":" * 86, b"data", None)  # its name would be longer than servers take that keep files
        assert client.head_object(Bucket=name, Key=f"jobs/~{sha256(b':' * 86).hexdigest()}")
        await broker.store_bucket("..x", b"data", timedelta(days=365))
        assert _tags(client, name, "jobs/%2E.x") == {"repid-ttl": "d365"}


def _tags(client: Any, name: str, key: str) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in client.get_object_tagging(Bucket=name, Key=key)["TagSet"]}


@on_both_servers
async def test_checksums(place: str) -> None:
    async with Counted(place, checksums="when_supported") as counted:
        for data in (b"1", b"x" * (2 << 20)):
            await counted.broker.store_bucket("a", data, HOUR)
            assert await counted.broker.get_bucket("a") == data
        await counted.broker.delete_many(["a"])


@on_both_servers
async def test_what_is_kept_for_longer_than_there_are_classes(place: str, caplog: pytest.LogCaptureFixture) -> None:
    async with Counted(place, ttl_days=(1, 2)) as counted:
        for _ in range(2):
            await counted.broker.store_bucket("a", b"1", timedelta(days=3))
        assert await counted.broker.get_bucket("a") == b"1"
    assert caplog.text.count("add a class to ttl_days") == 1


@on_both_servers
async def test_one_rule_for_a_prefix(place: str, client: Any) -> None:
    async with Counted(place, retention="prefix", prefix_days=3) as counted:
        await counted.broker.store_bucket("a", b"1", timedelta(days=3))
        assert _tags(client, place.split("/")[2], "jobs/a") == {}
        for ttl in (None, timedelta(days=3, seconds=1)):
            with pytest.raises(BucketBrokerError, match=r"prefix_days, 3 days.*raise prefix_days"):
                await counted.broker.store_bucket("a", b"1", ttl)


@on_both_servers
async def test_what_others_have_stored(place: str, client: Any) -> None:
    name = place.split("/")[2]
    client.put_object(Bucket=name, Key="jobs/a", Body=b"?")
    client.put_object(Bucket=name, Key="jobs/b", Body=b"?", Metadata={"repid-format": "2"})
    async with Counted(place, max_payload=1000) as counted:
        with pytest.raises(CorruptBucketError, match=f"'jobs/a' in '{name}'.*not written by repid-s3"):
            await counted.broker.get_bucket("a")
        with pytest.raises(NewerFormatError, match="format 2"):
            await counted.broker.get_bucket("b")
        client.put_object(Bucket=name, Key="jobs/c", Body=b"x" * 1001, Metadata={"repid-format": "1"})
        with pytest.raises(BucketBrokerError, match="1,001 bytes: raise max_payload"):
            await counted.broker.get_bucket("c")


async def test_small_bodies_are_not_asked_for(stub: Stub, broker_on: Callable[..., S3BucketBroker]) -> None:
    stub.answers, stub.asks = [reply(200)], False
    broker = broker_on()
    await broker.connect()
    await broker.store_bucket("a", b"x" * 1000, None)
    assert "expect" not in stub.requests[-1].headers
    stub.asks = True
    await broker.store_bucket("a", b"x" * (2 << 20), None)
    assert stub.requests[-1].headers["expect"] == "100-continue"
    await broker.disconnect()


async def test_settings_are_sent(stub: Stub, broker_on: Callable[..., S3BucketBroker]) -> None:
    stub.answers = [reply(200)]
    broker = broker_on(sse="aws:kms", sse_kms_key_id="a-key", expected_bucket_owner="123456789012")
    await broker.connect()
    await broker.store_bucket("a", b"1", HOUR)
    headers = stub.requests[-1].headers
    assert headers["x-amz-server-side-encryption"] == "aws:kms"
    assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "a-key"
    assert headers["x-amz-expected-bucket-owner"] == "123456789012"
    assert headers["x-amz-tagging"] == "repid-ttl=d1"
    assert not {name for name in headers if "checksum" in name or "acl" in name}
    await broker.disconnect()


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("repid s3")]


async def test_nothing_is_left_after_disconnect_under_load(stub: Stub, broker_on: Callable[..., S3BucketBroker]) -> None:
    """What is cancelled ends in its thread, what was stored is acknowledged, and no thread is left."""
    go = threading.Event()

    def slow(_request: Any, _link: Any) -> bytes:
        go.wait(10)
        return reply(200)

    stub.answers = [reply(200), slow]
    broker = broker_on(concurrency=8)
    await broker.connect()
    stores = [asyncio.create_task(broker.store_bucket(f"b{n}", b"1", None)) for n in range(30)]
    while len(stub.requests) < 9:
        await asyncio.sleep(0.01)
    for store in stores[::2]:
        store.cancel()
    closing = asyncio.create_task(broker.disconnect())
    await asyncio.sleep(0.05)  # nothing is to happen
    assert not closing.done()
    with pytest.raises(NotConnectedError):
        await broker.get_bucket("a")
    go.set()
    await closing
    outcomes = await asyncio.gather(*stores, return_exceptions=True)
    assert list(outcomes[1::2]) == [None] * 15
    stored = {request.line.split()[1].rpartition("/")[2] for request in stub.requests}
    assert {f"b{n}" for n in range(1, 30, 2)} <= stored
    assert not ours()


async def test_nothing_of_boto3_runs_on_the_loop(place: str) -> None:
    """For how long Python's threads keep the loop waiting, is for the machine to say; that it makes no call itself, is ours."""
    threads: set[str] = set()
    made = session()
    made.events.register("creating-client-class.s3", lambda **_: threads.add(threading.current_thread().name))
    made.events.register("before-send.s3", lambda **_: threads.add(threading.current_thread().name))
    broker = S3BucketBroker(place, session=made)
    await broker.connect()
    await asyncio.gather(*(broker.store_bucket(f"b{n}", b"x" * 1024, HOUR) for n in range(64)))
    await broker.get_many([f"b{n}" for n in range(64)])
    await broker.delete_many([f"b{n}" for n in range(64)])
    with pytest.raises(ResultTimeoutError):
        await broker.wait_for("none", timedelta(0))
    await broker.ping()
    await broker.disconnect()
    assert 2 <= len(threads) <= broker.settings.concurrency
    assert all(name.startswith("repid s3") for name in threads), threads


@pytest.fixture
def interval() -> Iterator[float]:
    """How long a thread may compute, as Python has it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.005)
    yield 0.005
    sys.setswitchinterval(before)


async def test_threads_take_turns_more_often_while_connected(stub: Stub, interval: float) -> None:
    def broker(**settings: Any) -> S3BucketBroker:
        url = f"s3://bucket/jobs/?endpoint_url={stub.url}"
        return S3BucketBroker(url, session=session(), lifecycle="off", **settings)

    stub.answers = [reply(200)]
    leaves_it, wants_more = broker(switch_interval=None), broker(switch_interval=timedelta(milliseconds=20))
    await leaves_it.connect()
    await wants_more.connect()
    assert sys.getswitchinterval() == interval
    first, second = broker(), broker(switch_interval=timedelta(microseconds=200))
    await first.connect()
    assert sys.getswitchinterval() == pytest.approx(0.0005)
    await second.connect()
    await first.disconnect()
    assert sys.getswitchinterval() == pytest.approx(0.0002)
    await second.disconnect()
    assert sys.getswitchinterval() == interval
    await leaves_it.disconnect()
    await wants_more.disconnect()


async def test_a_broker_that_cannot_connect_changes_nothing(stub: Stub, interval: float) -> None:
    stub.answers = [reply(404)]
    broker = S3BucketBroker(f"s3://bucket/jobs/?endpoint_url={stub.url}", session=session(), lifecycle="off")
    with pytest.raises(BucketBrokerError):
        await broker.connect()
    assert sys.getswitchinterval() == interval


async def test_a_loop_that_is_gone_leaves_no_interval_behind(stub: Stub, interval: float) -> None:
    stub.answers = [reply(200)]
    broker = S3BucketBroker(f"s3://bucket/jobs/?endpoint_url={stub.url}", session=session(), lifecycle="off")
    await asyncio.to_thread(asyncio.run, broker.connect())
    await broker.connect()
    assert sys.getswitchinterval() == pytest.approx(0.0005)
    await broker.disconnect()
    assert sys.getswitchinterval() == interval


async def test_what_the_application_sets_stays(stub: Stub, interval: float) -> None:
    stub.answers = [reply(200)]
    broker = S3BucketBroker(f"s3://bucket/jobs/?endpoint_url={stub.url}", session=session(), lifecycle="off")
    await broker.connect()
    sys.setswitchinterval(2 * interval)
    await broker.disconnect()
    assert sys.getswitchinterval() == 2 * interval


async def test_one_request_is_prepared_at_once(stub: Stub, broker_on: Callable[..., S3BucketBroker]) -> None:
    """So that the loop has its turn; and all wait for the server at once."""
    now, most, lock, go = 0, 0, threading.Lock(), threading.Event()

    def begins(**_: Any) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)

    def ends(**_: Any) -> None:
        nonlocal now
        with lock:
            now -= 1

    def slow(_request: Any, _link: Any) -> bytes:
        go.wait(30)
        return reply(200)

    made = session()
    made.events.register_first("before-parameter-build.s3.PutObject", begins)
    made.events.register_first("before-send.s3.PutObject", ends)
    stub.answers = [reply(200), slow]
    broker = S3BucketBroker(f"s3://bucket/jobs/?endpoint_url={stub.url}", session=made, lifecycle="off")
    await broker.connect()
    assert len(ours()) == 32  # none is started on the loop
    stores = [asyncio.create_task(broker.store_bucket(f"b{n}", b"1", None)) for n in range(64)]
    while len(stub.requests) < 1 + 32:
        await asyncio.sleep(0.01)
    go.set()
    await asyncio.gather(*stores)
    await broker.disconnect()
    assert most == 1


async def test_few_threads_are_at_work_where_the_server_is_near(stub: Stub) -> None:
    """More would bring nothing, and keep the loop waiting."""
    at_work: set[int] = set()
    most = 0

    def begins(**_: Any) -> None:
        nonlocal most
        at_work.add(threading.get_ident())
        most = max(most, len(at_work))

    made = session()
    made.events.register_first("before-parameter-build.s3.PutObject", begins)
    made.events.register_last("needs-retry.s3.PutObject", lambda **_: at_work.discard(threading.get_ident()))
    stub.answers = [reply(200)]
    broker = S3BucketBroker(f"s3://bucket/jobs/?endpoint_url={stub.url}", session=made, lifecycle="off")
    await broker.connect()
    await asyncio.gather(*(broker.store_bucket(f"b{n}", b"1", None) for n in range(256)))
    await broker.disconnect()
    assert 1 <= most <= 16  # 3 or 4, unless the machine stalls; it would be 32


async def test_requests_that_hang_hold_no_others_back(stub: Stub) -> None:
    go = threading.Event()

    def hangs(_request: Any, _link: Any) -> bytes:
        go.wait(30)
        return reply(200)

    stub.answers = [reply(200), *[hangs] * 8, reply(200)]
    broker = S3BucketBroker(f"s3://bucket/jobs/?endpoint_url={stub.url}", session=session(), lifecycle="off")
    await broker.connect()
    hanging = [asyncio.create_task(broker.store_bucket(f"b{n}", b"1", None)) for n in range(8)]
    while len(stub.requests) < 1 + 8:
        await asyncio.sleep(0.01)
    async with asyncio.timeout(20):
        await broker.store_bucket("c", b"1", None)
    assert not any(task.done() for task in hanging)
    go.set()
    await asyncio.gather(*hanging)
    await broker.disconnect()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says how much memory a process has taken")
async def test_a_large_body_is_not_copied(stub: Stub) -> None:
    """The most memory that a process takes to store 50 MiB, beside that of one which uses boto3 by hand."""
    stub.answers = [reply(200)]
    code = """
import asyncio, boto3, sys
made, size = boto3.Session("a-key", "a-secret", region_name="us-east-1"), 50 << 20
async def ours(url):
    from repid_s3 import S3BucketBroker
    broker = S3BucketBroker(f"s3://bucket/jobs/?endpoint_url={url}", session=made, lifecycle="off")
    await broker.connect()
    await broker.store_bucket("a", b"x" * size, None)
    await broker.disconnect()
async def raw(url):
    client, data = made.client("s3", endpoint_url=url), b"x" * size
    await asyncio.to_thread(lambda: client.put_object(Bucket="bucket", Key="a", Body=data))
asyncio.run(globals()[sys.argv[1]](sys.argv[2]))
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""
    taken = {}
    for name in ("raw", "ours"):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, name, stub.url, stdout=asyncio.subprocess.PIPE)
        taken[name] = int((await process.communicate())[0])
    assert len(stub.requests[-1].body) == 50 << 20
    assert taken["ours"] <= 1.1 * taken["raw"], taken


async def test_a_body_that_breaks_off_is_asked_for_again(stub: Stub, broker_on: Callable[..., S3BucketBroker]) -> None:
    whole = bucket("0123456789")
    stub.answers = [reply(200), lambda _, link: link.sendall(whole[:-4]), whole]
    broker = broker_on()
    await broker.connect()
    assert await broker.get_bucket("a") == b"0123456789"
    assert len(stub.requests) == 3
    await broker.disconnect()


def test_boto3_waits_until_it_is_wanted() -> None:
    code = "import sys, repid_s3.bucket_broker; print(*sorted({'boto3', 'botocore', 'click'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
