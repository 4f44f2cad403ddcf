"""Settings that are wrong say which, and what would be right."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from attrs import asdict

from repid_core.plugins import Kind, plugins
from repid_s3 import S3BucketBroker, S3BucketBrokerSettings

SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://bucket", ("bucket", "repid/", None, None)),
        ("s3://bucket/", ("bucket", "repid/", None, None)),
        ("s3://my.bucket-1/a/b", ("my.bucket-1", "a/b/", None, None)),
        ("s3://b-1/a/?region_name=eu-west-1&endpoint_url=http%3A%2F%2Fh:1", ("b-1", "a/", "eu-west-1", "http://h:1")),
        ("s3://b-1/a/?endpoint_url=http://h:1/", ("b-1", "a/", None, "http://h:1/")),
    ],
)
def test_urls(url: str, place: tuple[Any, ...]) -> None:
    found = S3BucketBrokerSettings(url).place
    assert (found.bucket, found.prefix, found.region_name, found.endpoint_url) == place


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"bucket": "my-jobs"}, "my-jobs repid/"),
        ({"bucket": "my-jobs", "prefix": "mail"}, "my-jobs mail/"),
        ({"url": "s3://my-jobs/", "prefix": "mail/"}, "my-jobs mail/"),
        ({"url": "s3://my-jobs/app", "prefix": "mail/x"}, "my-jobs app/mail/x/"),
    ],
)
def test_bucket_and_prefix_by_name(settings: dict[str, Any], place: str) -> None:
    found = S3BucketBrokerSettings(**settings).place
    assert f"{found.bucket} {found.prefix}" == place


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "give a url (s3://bucket/prefix/?region_name=…&endpoint_url=…), or a bucket"),
        ({"url": "s3://my-jobs/", "bucket": "my-jobs"}, "or a bucket, and not both"),
        ({"bucket": "my-jobs/app"}, "'my-jobs/app' is no bucket's name"),
        ({"bucket": "my-jobs", "prefix": "../a"}, "the prefix '../a/' has more than"),
    ],
)
def test_places_that_are_none(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="s3://bucket") as error:
        S3BucketBrokerSettings(**settings)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (7, "<int>: it is no URL"),
        ("http://bucket", "begins with s3://"),
        ("s3://", "no bucket's name"),
        ("s3://a", "'a' is no bucket's name"),
        ("s3://key:s3cret@bucket/", "no credentials go into it"),
        ("s3://bucket/#x", "it has a '#'"),
        ("s3://bucket//a", "the prefix '/a/' has more than"),
        ("s3://bucket/a//b", "single slashes"),
        ("s3://bucket/../b", "the prefix '../b/'"),
        ("s3://bucket/ü/", "the prefix 'ü/' has more than"),
        (f"s3://bucket/{'x' * 200}", "longer than 200 bytes"),
        ("s3://bucket/?region=x", "'region' is not known"),
    ],
)
def test_urls_that_are_none(url: Any, said: str) -> None:
    with pytest.raises(ValueError, match="the form is s3://bucket") as error:
        S3BucketBrokerSettings(url)
    assert said in str(error.value)
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"region_name": ""}, "region_name=''"),
        ({"endpoint_url": "h:1"}, "endpoint_url='h:1': give a URL"),
        ({"retention": "x"}, "'tags', 'prefix', 'none'"),
        ({"retention": "prefix"}, "goes with a number of days"),
        ({"prefix_days": 3}, "goes with a number of days"),
        ({"retention": "prefix", "prefix_days": 0}, "whole number of days"),
        ({"ttl_days": ()}, "ttl_days="),
        ({"ttl_days": (2, 1)}, "larger than the one before"),
        ({"lifecycle": "on"}, "'ensure', 'check', 'off'"),
        ({"purge_noncurrent": 1}, "True or False"),
        ({"concurrency": 0}, "from 1 to 1,000"),
        ({"switch_interval": timedelta(0)}, "of at least 0.0001 s, or None"),
        ({"connect_timeout": 5}, "a timedelta of at least"),
        ({"max_attempts": 21}, "from 1 to 20"),
        ({"checksums": "never"}, "'when_required'"),
        ({"sse": "x"}, "None, 'AES256', 'aws:kms'"),
        ({"sse_kms_key_id": "k"}, 'for sse="aws:kms"'),
        ({"expected_bucket_owner": "1"}, "twelve digits"),
        ({"addressing_style": "x"}, "'auto', 'path', 'virtual'"),
        ({"max_payload": 0}, "max_payload=0"),
        ({"poll_factor": 0.5}, "from 1 to 10"),
        ({"poll_longest": timedelta(milliseconds=10)}, "shorter than poll_first"),
    ],
)
def test_settings_that_are_wrong(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="=") as error:
        S3BucketBrokerSettings("s3://bucket", **settings)
    assert said in str(error.value)


def test_the_url_and_the_settings_differ() -> None:
    assert S3BucketBrokerSettings("s3://bucket/?region_name=a", region_name="a").place.region_name == "a"
    with pytest.raises(ValueError, match="region_name is in the URL and in the settings"):
        S3BucketBrokerSettings("s3://bucket/?region_name=a", region_name="b")


def test_the_broker_is_made_as_configured() -> None:
    settings = S3BucketBrokerSettings("s3://bucket", ttl_days=[1, 2], read_timeout=7 * SECOND)
    broker = S3BucketBroker.from_settings(settings)
    assert asdict(broker.settings) == asdict(settings)
    known = plugins()
    assert known.for_scheme(Kind.BUCKET_BROKER, "s3").name == "s3"
    assert isinstance(known.build(Kind.BUCKET_BROKER, "s3", settings), S3BucketBroker)
