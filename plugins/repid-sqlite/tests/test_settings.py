"""Settings that are wrong say which, and what would be right."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from repid_core.plugins import Kind, plugins
from repid_sqlite import (
    SqliteBucketBroker,
    SqliteBucketBrokerSettings,
    SqliteMessageBroker,
    SqliteMessageBrokerSettings,
)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("jobs.db", ("jobs.db", "repid", "normal")),
        ("/var/jobs.db", ("/var/jobs.db", "repid", "normal")),
        (Path("/var/jobs.db"), ("/var/jobs.db", "repid", "normal")),
        ("sqlite://./jobs.db", ("jobs.db", "repid", "normal")),
        ("sqlite://../a/jobs.db", ("../a/jobs.db", "repid", "normal")),
        ("sqlite:jobs.db", ("jobs.db", "repid", "normal")),
        ("sqlite:///var/my%20jobs.db", ("/var/my jobs.db", "repid", "normal")),
        ("sqlite:////var/jobs.db", ("/var/jobs.db", "repid", "normal")),
        ("sqlite://localhost/var/jobs.db", ("/var/jobs.db", "repid", "normal")),
        ("sqlite:///var/jobs.db?prefix=app&synchronous=full", ("/var/jobs.db", "app", "full")),
    ],
)
def test_urls(url: Any, found: tuple[str, str, str]) -> None:
    settings = SqliteMessageBrokerSettings(url)
    assert (settings.path, settings.space, settings.durability) == (Path(found[0]), *found[1:])


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (None, "neither a URL nor a path"),
        ("", "neither a URL nor a path"),
        ("redis://host", "its scheme is not sqlite"),
        (":memory:", "it is no file"),
        ("sqlite:///:memory:", "it names no file"),
        ("sqlite:///", "it names no file"),
        ("sqlite://jobs.db", "'jobs.db' stands where a host would"),
        ("sqlite:///a#b", "write %23"),
        ("sqlite:///a?lease=3", "'lease' is not known"),
    ],
)
def test_urls_that_are_none(url: Any, said: str) -> None:
    with pytest.raises(ValueError, match="the form is sqlite:///absolute") as error:
        SqliteMessageBrokerSettings(url)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prefix": "a:b"}, "prefix='a:b': give 1 to 100"),
        ({"prefix": ""}, "prefix=''"),
        ({"synchronous": "off"}, "'normal', 'full', 'extra'"),
        ({"busy_timeout": 5}, "busy_timeout=5: give a timedelta"),
        ({"lease": timedelta(milliseconds=999)}, "at least 1 s"),
        ({"poll": timedelta(0)}, "poll="),
        ({"max_deliveries": 1}, "from 2 to"),
        ({"max_payload": 1 << 30}, "max_payload=1073741824"),
    ],
)
def test_settings_that_are_wrong(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="=") as error:
        SqliteMessageBrokerSettings("jobs.db", **settings)
    assert said in str(error.value)
    assert type(SqliteBucketBrokerSettings("jobs.db")).__name__


@pytest.mark.parametrize("url", ["sqlite:jobs.db?prefix=a:b", "sqlite:jobs.db?synchronous=off"])
def test_settings_in_the_url_are_checked_too(url: str) -> None:
    with pytest.raises(ValueError, match="give"):
        SqliteBucketBrokerSettings(url)


def test_the_url_and_the_settings_differ() -> None:
    assert SqliteMessageBrokerSettings("sqlite:jobs.db?prefix=a", prefix="a").space == "a"
    with pytest.raises(ValueError, match="prefix is in the URL and in the settings"):
        SqliteMessageBrokerSettings("sqlite:jobs.db?prefix=a", prefix="b")


def test_the_brokers_are_made_as_configured() -> None:
    known = plugins()
    messages = SqliteMessageBrokerSettings("jobs.db", lease=timedelta(seconds=7))
    broker = known.build(Kind.MESSAGE_BROKER, "sqlite", messages)
    assert isinstance(broker, SqliteMessageBroker)
    assert broker.settings == messages
    buckets = SqliteBucketBrokerSettings("jobs.db", use_result_bucket=False)
    bucket_broker = known.build(Kind.BUCKET_BROKER, "sqlite", buckets)
    assert isinstance(bucket_broker, SqliteBucketBroker)
    assert bucket_broker.settings == buckets
    assert known.for_scheme(Kind.MESSAGE_BROKER, "sqlite").name == "sqlite"
    assert known.for_scheme(Kind.BUCKET_BROKER, "sqlite").name == "sqlite"
