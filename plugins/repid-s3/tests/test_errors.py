"""What goes wrong is said by name, with what to do, and without secrets."""

from __future__ import annotations

import re
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import boto3
import pytest

from repid_core.errors import BucketBrokerError, BucketConnectionError
from repid_s3 import S3BucketBroker, skew
from servers import Stub, bucket, free_port, refusal, reply, session

HOUR = timedelta(hours=1)
README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def reset(_request: Any, link: socket.socket) -> None:
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def stall(_request: Any, link: socket.socket) -> None:
    link.recv(1)


def stall_in_the_body(_request: Any, link: socket.socket) -> None:
    link.sendall(bucket("0123456789")[:-4])
    link.recv(1)


# What the server says, to which call; whether it may be otherwise later; what is said; how many requests boto3 has made of it.
CASES: dict[str, tuple[Any, str, bool, str, int]] = {
    "throttled": (
        refusal(503, "SlowDown", "Reduce your request rate."),
        "store",
        True,
        "asked too much .SlowDown.*lower concurrency",
        2,
    ),
    "broken": (refusal(500, "InternalError", "We failed."), "store", True, "S3 has failed .InternalError We failed", 2),
    "no such bucket": (refusal(404, "NoSuchBucket"), "get", False, "'bucket' of S3 at http.*there is no such bucket: make it", 1),
    "denied store": (refusal(403, "AccessDenied"), "store", False, r"grant s3:PutObject and.*s3:PutObjectTagging for jobs/\*", 1),
    "denied get": (
        refusal(403, "AccessDenied"),
        "get",
        False,
        r"s3:GetObject for jobs/\*, and s3:ListBucket.*missing reads as denied",
        1,
    ),
    "denied delete": (refusal(403, "AccessDenied"), "delete", False, "grant s3:DeleteObject", 1),
    "unknown key": (
        refusal(403, "InvalidAccessKeyId"),
        "get",
        False,
        "does not know the access key.*credentials that boto3 finds",
        1,
    ),
    "wrong secret": (refusal(403, "SignatureDoesNotMatch"), "get", False, "the secret key is not that of the access key", 1),
    "expired": (refusal(400, "ExpiredToken"), "get", False, "token has expired", 1),
    "clock": (
        refusal(403, "RequestTimeTooSkewed", Date="Mon, 01 Jan 2024 00:00:00 GMT"),
        "get",
        False,
        "clock .*2024.*set it",
        1,
    ),
    "region": (refusal(301, "PermanentRedirect"), "get", False, "does not say where: set region_name to the bucket's", 81),
    "region named": (
        refusal(301, "PermanentRedirect", x_amz_bucket_region="eu-west-1"),
        *("get", False, "in another region .PermanentRedirect.: set region_name, now what boto3 finds", 2),
    ),
    "no tags": (refusal(501, "NotImplemented", "A header"), "store", False, 'takes no tags.*set retention="prefix"', 1),
    "no tags either": (refusal(400, "InvalidArgument", "x-amz-tagging"), "store", False, 'takes no tags.*retention="none"', 1),
    "too large": (refusal(400, "EntityTooLarge"), "store", False, "lower max_payload", 1),
    "no key": (refusal(400, "KMS.NotFoundException", "no key"), "store", False, "correct sse_kms_key_id", 1),
    "anything": (refusal(400, "InvalidRequest", "because"), "get", False, "S3 has refused it: InvalidRequest because", 1),
    "reset": (reset, "store", True, "connection was lost|cannot be reached", 2),
    "stall": (stall, "get", True, "does not answer in time", 1),
    "stall in the body": (stall_in_the_body, "get", True, "does not answer in time", 2),
}


@pytest.mark.parametrize("case", CASES)
async def test_errors(case: str, stub: Stub, broker_on: Callable[..., S3BucketBroker]) -> None:
    answer, call, later, said, requests = CASES[case]
    stub.answers = [reply(200), answer]
    stalls = case.startswith("stall")
    broker = broker_on(max_attempts=1 if stalls else 2, read_timeout=timedelta(seconds=2.5 if stalls else 60))
    await broker.connect()
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "store": lambda: broker.store_bucket("a", b"1", HOUR),
        "get": lambda: broker.get_bucket("a"),
        "delete": lambda: broker.delete_bucket("a"),
    }
    with pytest.raises(BucketBrokerError, match=said) as error:
        await calls[call]()
    assert isinstance(error.value, BucketConnectionError) is later
    assert error.value.__cause__ is not None
    operation = {"store": "PutObject", "get": "GetObject", "delete": "DeleteObject"}[call]
    printed = str(error.value).removeprefix(f"{operation} in bucket 'bucket' of S3 at {stub.url}: ")
    if case != "reset":  # which the machine reports as one thing or another
        row = f"| {case} | `{call}_bucket` | {'yes' if later else 'no'} | {printed} |"
        assert row in README, f"put this into the README:\n{row}"
    assert "a-secret" not in f"{error.value}{error.value.__cause__!r}"
    assert len(stub.requests) == 1 + requests
    await broker.disconnect()


async def test_throttled_and_then_not(stub: Stub, broker_on: Callable[..., S3BucketBroker]) -> None:
    stub.answers = [reply(200), refusal(503, "SlowDown"), refusal(500, "InternalError"), reply(200)]
    broker = broker_on()
    await broker.connect()
    await broker.store_bucket("a", b"1", None)
    assert len(stub.requests) == 4
    await broker.disconnect()


async def test_some_of_many_are_not_deleted(stub: Stub, broker_on: Callable[..., S3BucketBroker]) -> None:
    error = "<Error><Key>jobs/b</Key><Code>AccessDenied</Code><Message>No</Message></Error>"
    stub.answers = [reply(200), reply(200, f"<DeleteResult>{error}</DeleteResult>")]
    broker = broker_on()
    await broker.connect()
    with pytest.raises(BucketBrokerError, match="1 of 2 buckets were not deleted: AccessDenied No for 'jobs/b'"):
        await broker.delete_many(["a", "b"])
    await broker.disconnect()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (reply(404), "there is no such bucket"),
        (reply(403), "access is denied.*s3:ListBucket on the bucket"),
        (reply(301), "another region|does not say where|set region_name"),
    ],
)
async def test_connecting(answer: bytes, said: str, stub: Stub, broker_on: Callable[..., S3BucketBroker]) -> None:
    stub.answers = [answer]
    with pytest.raises(BucketBrokerError, match=said):
        await broker_on().connect()


async def test_nothing_listens() -> None:
    url = f"s3://bucket/jobs/?endpoint_url=http://127.0.0.1:{free_port()}"
    broker = S3BucketBroker(url, session=session(), max_attempts=1)
    with pytest.raises(BucketConnectionError, match=r"nothing listens there.*correct endpoint_url"):
        await broker.connect()


async def test_no_credentials(stub: Stub) -> None:
    broker = S3BucketBroker(f"s3://bucket/?endpoint_url={stub.url}&region_name=us-east-1", session=boto3.Session())
    with pytest.raises(BucketBrokerError, match="boto3 finds no credentials"):
        await broker.connect()
    assert not stub.requests


def test_no_secrets_in_a_repr() -> None:
    broker = S3BucketBroker("s3://bucket/jobs/", session=session())
    assert not re.search("a-secret|an-access-key", f"{broker!r}{broker.settings!r}{vars(broker)}")


@pytest.mark.parametrize(
    ("ahead", "said"),
    [
        (
            timedelta(hours=1),
            r"clock of this machine is 3[56]\d\d s ahead of that of http://127.*gone that much too early.*NTP",
        ),
        (timedelta(hours=-1), r"the clock of this machine is 3[56]\d\d s behind that of http://127.*gone that much too late"),
        (timedelta(0), ""),
    ],
)
async def test_a_clock_that_is_off(
    ahead: timedelta, said: str, stub: Stub, broker_on: Callable[..., S3BucketBroker], caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, at connect, and all works on."""
    stub.answers = [lambda *_: reply(200, Date=format_datetime(datetime.now(UTC) - ahead, usegmt=True))]
    broker = broker_on()
    await broker.connect()
    await broker.store_bucket("a", b"1", HOUR)
    await broker.disconnect()
    assert len(caplog.records) == bool(said)
    assert re.search(said, caplog.text)


@pytest.mark.parametrize(
    ("date", "seconds"),
    [
        ("Sun, 01 Nov 2026 12:00:00 GMT", 0),
        ("Sun, 01 Nov 2026 12:00:35 GMT", 0),  # within the time that the request took, and a little
        ("Sun, 01 Nov 2026 11:59:55 GMT", 0),
        ("Sun, 01 Nov 2026 12:00:36 GMT", -6),
        ("Sun, 01 Nov 2026 11:59:54 GMT", 6),
        ("Sun, 01 Nov 2026 12:00:00 -0000", 0),  # no zone
        ("yesterday", 0),
        (None, 0),
    ],
)
def test_by_how_much(date: str | None, seconds: int) -> None:
    noon = datetime(2026, 11, 1, 12, tzinfo=UTC)
    assert skew.offset(date, noon, noon + timedelta(seconds=30)) == timedelta(seconds=seconds)
