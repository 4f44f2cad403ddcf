"""The default retry policy."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repid_core.retry import RetryPolicy, default_retry_policy_factory

ERROR = RuntimeError("failed")


def delays(policy: RetryPolicy, attempt: int, draws: int = 400) -> list[float]:
    random.seed(attempt)
    return [delay.total_seconds() for _ in range(draws) if (delay := policy(attempt, ERROR)) is not None]


@pytest.mark.parametrize(
    ("attempt", "shortest", "longest"),
    [(1, 10, 20), (2, 20, 40), (3, 40, 80), (10, 5120, 10240), (14, 43200, 86400), (15, 43200, 86400), (1000, 43200, 86400)],
)
def test_the_default_doubles_with_every_attempt_and_draws_half_of_the_wait(attempt: int, shortest: int, longest: int) -> None:
    drawn = delays(default_retry_policy_factory(), attempt)
    tenth = (longest - shortest) / 10
    assert shortest <= min(drawn) < shortest + tenth
    assert longest - tenth < max(drawn) <= longest


def test_jobs_that_failed_together_come_back_apart() -> None:
    drawn = delays(default_retry_policy_factory(), 1, 100)
    assert len(set(drawn)) == 100


def test_delays_grow_no_more_after_the_last_exponent() -> None:
    policy = default_retry_policy_factory(min_backoff=0, multiplier=1, max_exponent=3)
    assert max(delays(policy, 3)) <= 16
    assert min(delays(policy, 50)) >= 8
    assert max(delays(policy, 50)) <= 16


def test_it_never_overflows() -> None:
    policy = default_retry_policy_factory(multiplier=1e6, max_exponent=60)
    assert policy(10**6, ERROR) is not None
    assert max(delays(policy, 10**100, 50)) <= 86400


def test_a_minimum_that_is_the_maximum_is_a_constant() -> None:
    assert set(delays(default_retry_policy_factory(min_backoff=30, max_backoff=30), 4)) == {30}


def test_no_minimum_and_no_multiplier_mean_no_delay() -> None:
    assert default_retry_policy_factory(min_backoff=0, multiplier=0)(3, ERROR) == timedelta(0)


@given(
    st.floats(0, 1000),
    st.floats(0, 10**6),
    st.floats(0, 1000),
    st.integers(0, 60),
    st.integers(1, 10**6),
)
def test_it_stays_between_minimum_and_maximum(least: float, span: float, multiplier: float, exponent: int, attempt: int) -> None:
    delay = default_retry_policy_factory(least, least + span, multiplier, exponent)(attempt, ERROR)
    microsecond = timedelta(microseconds=1)
    assert delay is not None
    assert timedelta(seconds=least) - microsecond <= delay <= timedelta(seconds=least + span) + microsecond


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"min_backoff": -1}, "min_backoff=-1"),
        ({"min_backoff": float("nan")}, "min_backoff=nan"),
        ({"min_backoff": True}, "min_backoff=True"),
        ({"min_backoff": timedelta(seconds=1)}, "min_backoff=datetime.timedelta"),
        ({"max_backoff": float("inf")}, "max_backoff=inf"),
        ({"max_backoff": "60"}, "max_backoff='60'"),
        ({"min_backoff": 20, "max_backoff": 10}, "min_backoff=20 is more than max_backoff=10"),
        ({"multiplier": -0.5}, "multiplier=-0.5"),
        ({"max_exponent": -1}, "max_exponent=-1"),
        ({"max_exponent": 61}, "max_exponent=61"),
        ({"max_exponent": 1.5}, "max_exponent=1.5"),
    ],
)
def test_a_bad_argument_is_named_at_once(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        default_retry_policy_factory(**arguments)
