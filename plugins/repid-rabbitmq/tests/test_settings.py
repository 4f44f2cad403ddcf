"""What can be set: by name and by URL, and what is said when it is wrong."""

# ruff: noqa: S106 — these passwords are no secrets

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from attrs import asdict, fields

from repid_core.data import Capability
from repid_rabbitmq import RabbitMessageBroker, RabbitMessageBrokerSettings
from repid_rabbitmq.url import AMQPURL, Node, masked

SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("amqp://", AMQPURL(False, (Node("localhost", 5672),))),
        ("amqp://h", AMQPURL(False, (Node("h", 5672),))),
        ("AMQPS://h:1/", AMQPURL(True, (Node("h", 1),))),
        ("amqps://h/my%2Fhost", AMQPURL(True, (Node("h", 5671),), "my/host")),
        ("amqp://us%40er:p%2F%3A%23w@h/v", AMQPURL(False, (Node("h", 5672),), "v", "us@er", "p/:#w")),
        ("amqp://u:@h/%2F", AMQPURL(False, (Node("h", 5672),), "/", "u", "")),
        ("amqp://u:p@a:1,b,[::1]:7/v", AMQPURL(False, (Node("a", 1), Node("b", 5672), Node("::1", 7)), "v", "u", "p")),
    ],
)
def test_urls(url: str, wanted: AMQPURL) -> None:
    assert RabbitMessageBrokerSettings(url).target == wanted


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:5672", "it is no URL"),
        (7, "<int>: it is no URL"),
        ("http://h", "its scheme is 'http'"),
        ("amqp://u:secret@h:port", "'h:port' is no host with a port"),
        ("amqp://h:70000", "'h:70000' is no host"),
        ("amqp://a,,b", "'' is no host"),
        ("amqp://h/a/b", "write %2F"),
        ("amqp://u:se#cret@h", "write %23"),
        ("amqp://u:secret@h/?heartbeat=5", "give settings by name"),
    ],
)
def test_urls_that_are_none(url: Any, said: str) -> None:
    with pytest.raises(ValueError, match="the form is amqp://") as error:
        RabbitMessageBrokerSettings(url)
    assert said in str(error.value)
    assert "secret" not in str(error.value)
    assert "cret@" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prefix": "a:b"}, "prefix='a:b': give 1 to 64 of ASCII"),
        ({"prefix": ""}, "prefix=''"),
        ({"queue_type": "stream"}, "give one of 'classic', 'quorum'"),
        ({"heartbeat": timedelta(0)}, "at least 1 s and at most 3600 s"),
        ({"heartbeat": 60}, "give a timedelta"),
        ({"connect_timeout": None}, "give a timedelta"),
        ({"max_payload": 0}, "give a whole number from 1 to 536,870,912"),
        ({"frame_max": 4000}, "give a whole number from 4,096"),
        ({"max_deliveries": 2}, "from 3 on, or None for no limit"),
        ({"max_deliveries": True}, "from 3 on"),
        ({"declare": "no"}, "declare='no': give True or False"),
        ({"password": ""}, "password is str: give a text that is not empty"),
        ({"password": 12345}, "password is int"),
        ({"auth": "external"}, "needs a certificate"),
        ({"ssl_ca_certs": "ca.pem"}, "the URL asks for no TLS: write amqps://"),
        ({"quorum_group_size": 3}, 'is for queue_type="quorum"'),
        ({"reconnect_backoff": (2 * SECOND, SECOND)}, "the shortest pause and the longest"),
        ({"consumer_timeout": SECOND}, "at least 60 s, or None for the server's"),
    ],
)
def test_settings_that_are_wrong(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        RabbitMessageBroker(**settings)
    assert "12345" not in str(error.value)


def test_a_key_without_its_certificate() -> None:
    with pytest.raises(ValueError, match="without ssl_certfile"):
        RabbitMessageBroker("amqps://h", ssl_keyfile="key.pem")


def test_an_unknown_setting() -> None:
    with pytest.raises(TypeError, match="lease"):
        RabbitMessageBroker(lease=SECOND)


def test_no_repr_shows_a_password() -> None:
    shown = repr(RabbitMessageBrokerSettings("amqp://u:s3cret@h/v", password="s3cret"))
    assert "s3cret" not in shown
    assert "amqp://u:***@h/v" in shown
    assert masked(None) == "<NoneType>"


def test_the_broker_is_made_as_configured() -> None:
    settings = RabbitMessageBrokerSettings("amqp://h", prefix="p", reconnect_backoff=[SECOND, SECOND], heartbeat=7 * SECOND)
    broker = RabbitMessageBroker.from_settings(settings)
    assert asdict(broker.settings) == asdict(settings)
    assert broker.limits.lease == 7 * SECOND
    assert len(fields(RabbitMessageBrokerSettings)) == len(asdict(settings))


def test_what_settings_promise() -> None:
    assert RabbitMessageBroker().capabilities == {Capability.DELAY, Capability.PRIORITY, Capability.POISON}
    assert Capability.POISON not in RabbitMessageBroker(max_deliveries=None).capabilities
    assert Capability.POISON not in RabbitMessageBroker(declare=False).capabilities
