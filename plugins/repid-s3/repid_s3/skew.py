"""Whether the clock of this machine goes with that of the server.

A bucket is gone when its time is over by the reader's clock, which is this machine's. That is corrected by nobody: two readers
would agree no better if each went by what a server said to it at another moment. But it is said when they differ.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

from repid_s3.settings import Place

logger = logging.getLogger(__name__)

_TOLERANCE: Final = timedelta(seconds=5)  # the header has whole seconds, and NTP keeps a machine far within this


def offset(date: str | None, before: datetime, after: datetime) -> timedelta:
    """By how much this machine's clock is ahead of the server's, at least; zero if it may be right, or nobody knows.

    Args:
        date: The header of an answer.
        before: When its request was made, by this machine.
        after: When the answer was there, by this machine.
    """
    try:
        server = parsedate_to_datetime(date or "")
        ahead, behind = before - server, server - after
    except (ValueError, TypeError):  # no date, or one without a zone
        return timedelta(0)
    if ahead > _TOLERANCE:
        return ahead
    return -behind if behind > _TOLERANCE else timedelta(0)


def see_to(date: str | None, before: datetime, after: datetime, place: Place) -> None:
    """Warn of a clock that is off."""
    found = offset(date, before, after)
    if found:
        side, when = ("ahead of", "too early") if found > timedelta(0) else ("behind", "too late")
        logger.warning(
            "the clock of this machine is %.0f s %s that of %s: buckets are gone that much %s for it, and S3 refuses requests "
            "from about 15 minutes on; set the clock, for example by NTP",
            abs(found).total_seconds(), side, place.endpoint_url or "AWS", when,
        )  # fmt: skip
