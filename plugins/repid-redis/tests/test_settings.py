"""What can be set: by name and by URL, and what is said when it is wrong."""

# ruff: noqa: S106 — these passwords are no secrets

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from attrs import asdict, fields

from repid_redis.bucket_broker import RedisBucketBroker
from repid_redis.message_broker import RedisMessageBroker
from repid_redis.settings import RedisBucketBrokerSettings, RedisMessageBrokerSettings, RedisSettings
from repid_redis.url import Node, RedisURL, masked

SECOND = timedelta(seconds=1)
BOTH = [RedisMessageBrokerSettings, RedisBucketBrokerSettings]


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("redis://", RedisURL("standalone", nodes=(Node("localhost", 6379),))),
        ("redis://h", RedisURL("standalone", nodes=(Node("h", 6379),))),
        ("REDIS://h:1/2", RedisURL("standalone", nodes=(Node("h", 1),), db=2)),
        ("redis://h/?db=2", RedisURL("standalone", nodes=(Node("h", 6379),), db=2)),
        ("redis://:pw@h", RedisURL("standalone", nodes=(Node("h", 6379),), password="pw")),
        (
            "rediss://us%40er:p%2F%3A%23w@h:1",
            RedisURL("standalone", tls=True, nodes=(Node("h", 1),), username="us@er", password="p/:#w"),
        ),
        ("redis://[::1]:7/1", RedisURL("standalone", nodes=(Node("::1", 7),), db=1)),
        ("redis://[fe80::1]", RedisURL("standalone", nodes=(Node("fe80::1", 6379),))),
        ("redis+unix:///run/redis%20one.sock?db=3", RedisURL("standalone", socket="/run/redis one.sock", db=3)),
        ("unix://u:p@/run/redis.sock", RedisURL("standalone", socket="/run/redis.sock", username="u", password="p")),
        ("redis+cluster://a:7000,b", RedisURL("cluster", nodes=(Node("a", 7000), Node("b", 6379)))),
        ("rediss+cluster://a/0", RedisURL("cluster", tls=True, nodes=(Node("a", 6379),), db=0)),
        (
            "redis+sentinel://u:p@a,b:1/mymaster/2",
            RedisURL("sentinel", nodes=(Node("a", 26379), Node("b", 1)), service="mymaster", db=2, username="u", password="p"),
        ),
        ("rediss+sentinel://[::1]:5,b/m", RedisURL("sentinel", tls=True, nodes=(Node("::1", 5), Node("b", 26379)), service="m")),
    ],
)
def test_urls(url: str, wanted: RedisURL) -> None:
    assert RedisSettings(url).target == wanted


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:6379", "has no scheme"),
        ("http://h", "the scheme 'http' is not known"),
        ("redis+tcp://h", "the scheme 'redis+tcp' is not known"),
        ("rediss+unix:///run/x", "the scheme 'rediss+unix' is not known"),
        ("redis+://h", "the scheme 'redis+' is not known"),
        ("redis://h:port", "a port is no number from 1 to 65535"),
        ("redis://h:70000", "a port is no number from 1 to 65535"),
        ("redis://[::1", "an address in brackets does not end"),
        ("redis://h/one", "the database is no number"),
        ("redis://h/0/1", "the path has too many parts"),
        ("redis://h/0?db=1", "the database twice"),
        ("redis://a,b", "several hosts: write redis+sentinel:// or redis+cluster://"),
        ("redis://h/0?lease=3&db=1", "nothing is known of lease in a URL: pass it as a setting"),
        ("redis+unix://h/run/x", "a Unix socket has a path, and no host"),
        ("redis+unix://", "a Unix socket has a path, and no host"),
        ("redis+sentinel://h", "with Sentinel, give the server's name"),
        ("redis+sentinel://h/0", "with Sentinel, give the server's name"),
        ("redis+cluster://h/1", "a cluster has the database 0 alone"),
    ],
)
@pytest.mark.parametrize("kind", BOTH)
def test_wrong_urls(kind: type[RedisSettings], url: str, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        kind(url)
    assert said in str(caught.value)


@pytest.mark.parametrize("password", ["se/cret", "se?cret", "se#cret", "se?a=cret", "se/cret/more", "1/se@cret", "/se@cret"])
def test_passwords_that_cannot_be_read_are_not_shown(password: str) -> None:
    with pytest.raises(ValueError, match="%2F") as caught:
        RedisSettings(f"redis://user:{password}@h:6379/0")
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("password", ["se:cret", "se@cret", "se[cret", "%", "ä"])
def test_passwords_that_can_be_read_need_not_be_encoded(password: str) -> None:
    target = RedisSettings(f"redis://user:{password}@h:6379/0").target
    assert (target.username, target.password, target.nodes) == ("user", password, (Node("h", 6379),))


@pytest.mark.parametrize("kind", BOTH)
def test_passwords_are_not_shown(kind: type[RedisSettings]) -> None:
    settings = kind("redis+sentinel://user:secret1@h/m", password="secret2", sentinel_password="secret3")
    assert "secret" not in repr(settings) + str(settings) + repr(settings.target)
    assert "redis+sentinel://user:***@h/m" in repr(settings)
    assert masked("redis://:a@b/c@h/0") == "redis://:***@h/0"
    assert masked("redis://h/0") == "redis://h/0"


def test_settings_go_over_the_url() -> None:
    target = RedisSettings("redis+sentinel://a:b@h/one/1", service_name="two", db=2, username="c", password="d").target
    assert (target.service, target.db, target.username, target.password) == ("two", 2, "c", "d")
    assert RedisSettings("redis://h:7000", mode="cluster").target == RedisURL("cluster", nodes=(Node("h", 7000),))
    assert RedisSettings("redis://h", mode="sentinel", service_name="m").target.nodes == (Node("h", 26379),)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "master"}, "mode='master': give one of 'standalone', 'sentinel', 'cluster'"),
        ({"url": "redis+cluster://h", "mode": "sentinel"}, "contradicts mode='sentinel'"),
        ({"service_name": "m"}, "service_name is for Sentinel"),
        ({"sentinel_password": "secret"}, "sentinel_password is for Sentinel"),
        ({"db": -1}, "db=-1: give a whole number from 0 on, or None for the URL's"),
        ({"url": "redis+cluster://h", "db": 1}, "a cluster has the database 0 alone"),
        ({"password": ""}, "password is str: give a text that is not empty"),
        ({"ssl_ca_certs": "ca.pem"}, "ssl_ca_certs is set, but the URL asks for no TLS: write rediss://"),
        ({"url": "redis+cluster://h", "ssl_check_hostname": False}, "write rediss+cluster://"),
        ({"url": "unix:///run/x", "ssl_cert_reqs": "none"}, "a Unix socket has no TLS"),
        ({"url": "rediss://h", "ssl_keyfile": "key.pem"}, "ssl_keyfile is set without ssl_certfile"),
        ({"url": "rediss://h", "ssl_cert_reqs": "optional"}, "ssl_cert_reqs='optional': give one of 'required', 'none'"),
        ({"url": "rediss://h", "ssl_check_hostname": "no"}, "ssl_check_hostname='no': give True or False"),
        ({"prefix": ""}, "prefix='': give a text"),
        ({"prefix": "a{b}"}, "braces, which choose a cluster's node"),
        ({"prefix": "a*"}, "which are patterns to ACL and SCAN"),
        ({"prefix": "a\\b"}, "which are patterns to ACL and SCAN"),
        ({"prefix": "a b"}, "prefix='a b'"),
        ({"prefix": "a\n"}, "prefix='a\\n'"),
        ({"connect_timeout": timedelta(0)}, "connect_timeout=datetime.timedelta(0): give a timedelta of at least 0.001 s"),
        ({"connect_timeout": 5}, "connect_timeout=5: give a timedelta"),
        ({"reply_deadline": timedelta(milliseconds=1)}, "give a timedelta of at least 0.1 s"),
        ({"reconnect_backoff": (SECOND, timedelta(0))}, "give two timedeltas over 0"),
        ({"reconnect_backoff": SECOND}, "give two timedeltas over 0"),
        ({"client_name": "my client"}, "client_name='my client': give ASCII letters"),
        ({"max_payload": 0}, "max_payload=0: give a whole number from 1 to 536,805,376"),
        ({"max_payload": 1 << 30}, "give a whole number from 1 to 536,805,376"),
        ({"max_payload": True}, "max_payload=True"),
    ],
)
@pytest.mark.parametrize("kind", BOTH)
def test_wrong_settings(kind: type[RedisSettings], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        kind(**settings)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lease": timedelta(milliseconds=999)}, "lease="),
        ({"heartbeat_interval": timedelta(seconds=8)}, "up to half of the lease (7.5 s), or None for a third of it"),
        ({"heartbeat_interval": timedelta(0)}, "heartbeat_interval=datetime.timedelta(0)"),
        ({"heartbeat_thread": 1}, "heartbeat_thread=1: give True or False"),
        ({"max_blocked": timedelta(0)}, "max_blocked="),
        ({"block_timeout": timedelta(milliseconds=10)}, "give a timedelta of at least 1 s"),
        ({"max_deliveries": 1}, "max_deliveries=1: give a whole number from 2 on"),
        ({"fetch_max_bytes": 0}, "fetch_max_bytes=0"),
        ({"merge_batch": 1001}, "merge_batch=1001: give a whole number from 1 to 1,000"),
        ({"merge_bytes": None}, "merge_bytes=None"),
        ({"dead_max_age": timedelta(0)}, "or None for ever"),
        ({"dead_max_count": 0}, "dead_max_count=0: give a whole number from 1 on, or None for no limit"),
        ({"wait_replicas": -1}, "wait_replicas=-1"),
        ({"check_eviction_policy": "yes"}, "check_eviction_policy='yes'"),
    ],
)
def test_wrong_settings_of_the_message_broker(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        RedisMessageBrokerSettings(**settings)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"compress_from": 0}, "compress_from=0: give a whole number from 1 on, or None for never"),
        ({"notify": None}, "notify=None: give True or False"),
        ({"use_result_bucket": "yes"}, "use_result_bucket='yes'"),
    ],
)
def test_wrong_settings_of_the_bucket_broker(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        RedisBucketBrokerSettings(**settings)
    assert said in str(caught.value)


@pytest.mark.parametrize("kind", BOTH)
def test_every_setting_is_described(kind: type[RedisSettings]) -> None:
    described = f"{RedisSettings.__doc__}{kind.__doc__}"
    for setting in fields(kind):
        lines = [line.strip() for line in described.splitlines()]
        assert any(line.startswith(f"{setting.name}: ") for line in lines), setting.name
    assert described.count("Default: ") == len(fields(kind))


def test_settings_of_configuration_files_and_by_hand_are_the_same() -> None:
    settings = RedisMessageBrokerSettings("redis://h:1/2", lease=SECOND, reconnect_backoff=[SECOND, 2 * SECOND])
    assert RedisMessageBrokerSettings(**asdict(settings, recurse=False)) == settings
    assert RedisMessageBroker.from_settings(settings).settings == settings
    assert RedisMessageBroker("redis://h:1/2", lease=SECOND, reconnect_backoff=(SECOND, 2 * SECOND)).settings == settings
    buckets = RedisBucketBrokerSettings("redis+sentinel://h/m", compress_from=None, password="secret")
    assert RedisBucketBroker.from_settings(buckets).settings == buckets


def test_brokers_know_what_there_is_to_set() -> None:
    with pytest.raises(TypeError, match="leese"):
        RedisBucketBroker(leese=1)
    with pytest.raises(ValueError, match="max_payload=0"):
        RedisBucketBroker(max_payload=0)
    assert RedisBucketBroker("redis://h", use_result_bucket=True, max_payload=5).limits.max_payload == 5
