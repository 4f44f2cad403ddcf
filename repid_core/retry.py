"""How long a failed job waits for its next attempt."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta

RetryPolicy = Callable[[int, Exception], timedelta | None]
"""Takes the attempt that failed, counted from 1, and its error; gives the delay before the next, None for no more."""

_YEAR = 365 * 86400


def default_retry_policy_factory(
    min_backoff: float = 10,
    max_backoff: float = 86400,
    multiplier: float = 5,
    max_exponent: int = 15,
) -> RetryPolicy:
    """Make a policy of exponential delays with equal jitter.

    The delay after attempt n grows as `multiplier * 2 ** min(n, max_exponent)`, is random between that and its double,
    and stays between `min_backoff` and `max_backoff`; where `max_backoff` cuts it off, it is random between half of
    `max_backoff` and the whole. By default: 10 to 20 s, 20 to 40 s, 40 to 80 s, … up to 12 to 24 hours.

    Equal jitter (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/) keeps half of the wait and
    draws the other half, so that jobs that failed together come back apart, and never at once.

    Args:
        min_backoff: The shortest delay, in seconds.
        max_backoff: The longest delay, in seconds; at most a year.
        multiplier: Seconds that the powers of two are multiplied by.
        max_exponent: The attempt from which on the delay grows no more, at most 60.

    Raises:
        ValueError: An argument is out of range; names it.
    """
    for name, seconds in (("min_backoff", min_backoff), ("max_backoff", max_backoff), ("multiplier", multiplier)):
        if type(seconds) not in {int, float} or not 0 <= seconds <= _YEAR:
            raise ValueError(f"{name}={seconds!r}: give a number of seconds from 0 to {_YEAR:,} (a year)")
    if min_backoff > max_backoff:
        raise ValueError(f"min_backoff={min_backoff!r} is more than max_backoff={max_backoff!r}: exchange them")
    if type(max_exponent) is not int or not 0 <= max_exponent <= 60:
        raise ValueError(f"max_exponent={max_exponent!r}: give a whole number from 0 to 60")

    def policy(attempt: int, error: Exception) -> timedelta:  # noqa: ARG001 — it treats all errors alike
        backoff = max(min_backoff, multiplier * 2 ** min(attempt, max_exponent))
        longest = min(max_backoff, 2 * backoff)
        return timedelta(seconds=random.uniform(max(min_backoff, longest / 2), longest))  # noqa: S311 — no secret

    return policy
