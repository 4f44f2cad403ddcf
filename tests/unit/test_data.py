"""Names, ids, and the values that travel."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from attrs.exceptions import FrozenInstanceError

from repid_core.data import Envelope, Parameters, Priority, ResultBucket, RoutingKey, check_id, check_name

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("id_", ["a", "7", "-", "_", "a.b", ".a", "..a", "a:b-c_d.E", ":", "0" * 256])
def test_a_legal_id(id_: str) -> None:
    assert check_id(id_) is id_


@pytest.mark.parametrize(
    "id_",
    [
        "",
        ".",
        "..",
        "." * 256,
        "0" * 257,
        "a b",
        "a/b",
        "../a",
        "a\n",
        "\na",
        "a\x00",
        "é",
        "٣",
        "²",
        "ａ",
        "a,b",
        None,
        7,
        b"a",
        ["a"],
    ],
)
def test_an_illegal_id_is_named(id_: object) -> None:
    with pytest.raises(ValueError, match=r"result_id .* is not valid: use 1 to 256 of ASCII letters") as caught:
        check_id(id_, "result_id")
    assert repr(id_) in str(caught.value)


@pytest.mark.parametrize("name", ["a", "_", "greet", "my-queue", "a.b.c", "A1", "a" * 128])
def test_a_legal_name(name: str) -> None:
    assert check_name(name, "queue name") is name


@pytest.mark.parametrize(
    "name",
    ["", "1a", "-a", ".a", ".", "a b", "a:b", "a/b", "a" * 129, "a\n", "é", "aé", "a٣", "a\x00", None, 7, b"a"],
)
def test_an_illegal_name_is_named(name: object) -> None:
    with pytest.raises(ValueError, match=r"queue name .* is not valid: start with an ASCII letter or '_'") as caught:
        check_name(name, "queue name")
    assert repr(name) in str(caught.value)


def test_priorities_are_ordered() -> None:
    assert Priority.HIGH > Priority.MEDIUM > Priority.LOW
    assert sorted([Priority.HIGH, Priority.LOW, Priority.MEDIUM]) == [0, 5, 9]


def test_values_are_frozen_and_compare_by_value() -> None:
    envelope = Envelope(RoutingKey("a", "act"), Parameters(NOW))
    assert envelope == Envelope(RoutingKey("a", "act"), Parameters(NOW))
    assert envelope != Envelope(RoutingKey("a", "act"), Parameters(NOW), headers={"a": "b"})
    with pytest.raises(FrozenInstanceError):
        envelope.payload = b"other"  # type: ignore[misc]


def test_payloads_and_tracebacks_stay_out_of_the_repr() -> None:
    envelope = Envelope(RoutingKey("a", "act"), Parameters(NOW), b"secret")
    assert "secret" not in repr(envelope)


def test_a_results_duration_is_exact_to_the_microsecond() -> None:
    bucket = ResultBucket(
        data=1,
        success=True,
        started_when=1_893_499_200_000_000_001,
        finished_when=1_893_499_201_500_001_000,
        exception=None,
        traceback=None,
        timestamp=NOW,
        expires_at=None,
    )
    assert bucket.duration == timedelta(seconds=1, microseconds=500_000)
