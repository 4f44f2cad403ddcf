"""The storage of what has expired is freed, by a server's own lifecycle.

SeaweedFS's is run at once, over objects that are made older. Another server's is waited for: `REPID_S3_TEST_URL` names an empty
bucket of it, `s3://bucket/prefix/?region_name=…&endpoint_url=…`, for which boto3 finds credentials in the environment, and
`REPID_S3_TEST_DAY` says how many seconds a day of its lifecycle takes. The README has a recipe.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import boto3
import pytest

from repid_s3 import S3BucketBroker, S3BucketBrokerSettings
from servers import Seaweed, session

DAY = timedelta(days=1)
NAMED = {name: os.environ[name] for name in os.environ if name.startswith(("AWS_", "REPID_S3_TEST_"))}  # before it is cleared


async def fill(broker: S3BucketBroker, client: Any, bucket: str) -> set[str]:
    """One bucket for each class, one for ever, one outside of the prefix that has our tag; the keys."""
    await broker.connect()
    for days in broker.settings.ttl_days:
        await broker.store_bucket(f"d{days}", b"data", days * DAY)
    await broker.store_bucket("ever", b"data", None)
    await broker.disconnect()
    client.put_object(Bucket=bucket, Key="other/d1", Body=b"data", Tagging="repid-ttl=d1")
    return keys(client, bucket)


def keys(client: Any, bucket: str) -> set[str]:
    return {found["Key"] for found in client.list_objects_v2(Bucket=bucket).get("Contents", ())}


@pytest.mark.parametrize("s3_url", ["seaweedfs"], indirect=True)
async def test_on_seaweedfs(seaweed: Seaweed, client: Any, place: str) -> None:
    """What is two days and some old goes, if its TTL was not longer; nothing else does, and none before it is old."""
    bucket = place.split("/")[2]
    all_ = await fill(S3BucketBroker(place, session=session()), client, bucket)
    assert len(all_) == 12
    seaweed.run_lifecycle()
    assert keys(client, bucket) == all_
    seaweed.age(client, bucket, 2 * 86_400 + 3600)
    seaweed.run_lifecycle()
    await gone(client, bucket, all_ - {"jobs/d1", "jobs/d2"})


@pytest.mark.parametrize("s3_url", ["seaweedfs"], indirect=True)
async def test_by_prefix_on_seaweedfs(seaweed: Seaweed, client: Any, place: str) -> None:
    bucket = place.split("/")[2]
    settings: dict[str, Any] = {"retention": "prefix", "prefix_days": 3}
    broker = S3BucketBroker(place, session=session(), **settings)
    await broker.connect()
    await broker.store_bucket("a", b"data", DAY)
    await broker.disconnect()
    client.put_object(Bucket=bucket, Key="other/a", Body=b"data")
    seaweed.age(client, bucket, 2 * 86_400)
    seaweed.run_lifecycle()
    assert keys(client, bucket) == {"jobs/a", "other/a"}
    seaweed.age(client, bucket, 2 * 86_400)
    seaweed.run_lifecycle()
    await gone(client, bucket, {"other/a"})


async def gone(client: Any, bucket: str, left: set[str]) -> None:
    deadline = time.monotonic() + 60
    while keys(client, bucket) != left and time.monotonic() < deadline:
        time.sleep(0.2)  # noqa: ASYNC251 — nothing else runs
    assert keys(client, bucket) == left


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[S3BucketBrokerSettings, Any]]:
    """The server that the environment names."""
    if "REPID_S3_TEST_URL" not in NAMED:
        pytest.skip("REPID_S3_TEST_URL names no bucket of a server whose lifecycle is to be seen")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in NAMED.items():
        monkeypatch.setenv(name, value)
    settings = S3BucketBrokerSettings(NAMED["REPID_S3_TEST_URL"], ttl_days=(1, 2, 30))
    client = boto3.client("s3", region_name=settings.place.region_name, endpoint_url=settings.place.endpoint_url)
    yield settings, client
    client.close()


@pytest.mark.timeout(0)
async def test_on_a_server_that_is_named(named: tuple[S3BucketBrokerSettings, Any]) -> None:
    settings, client = named
    bucket, prefix = settings.place.bucket, settings.place.prefix
    day = float(NAMED.get("REPID_S3_TEST_DAY", "86400"))
    assert not keys(client, bucket), "the bucket is not empty"
    start = time.monotonic()
    all_ = await fill(S3BucketBroker.from_settings(settings), client, bucket)
    left = all_ - {f"{prefix}d1", f"{prefix}d2"}
    while (found := keys(client, bucket)) != left:
        assert left <= found, f"gone too early: {left - found}"
        assert time.monotonic() - start < 8 * day + 60, f"still there: {found - left}"
        time.sleep(min(1, day / 10))  # noqa: ASYNC251 — nothing else runs
    client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in left]})
