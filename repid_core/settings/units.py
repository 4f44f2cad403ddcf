"""Durations and sizes as people write them."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

_UNITS: Final = {
    **dict.fromkeys(("us", "µs", "μs", "microsecond", "microseconds"), timedelta(microseconds=1)),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), timedelta(milliseconds=1)),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), timedelta(seconds=1)),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), timedelta(minutes=1)),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), timedelta(hours=1)),
    **dict.fromkeys(("d", "day", "days"), timedelta(days=1)),
    **dict.fromkeys(("w", "week", "weeks"), timedelta(weeks=1)),
}
_BYTES: Final[dict[str, int]] = {"b": 1, "byte": 1, "bytes": 1} | {
    f"{letter}{ending}": base**power for power, letter in enumerate("kmgtp", 1) for ending, base in (("b", 1000), ("ib", 1024))
}
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-zµμ]+)\s*")
_ISO: Final = re.compile(r"P(?=.)(?:(\d+)W)?(?:(\d+)D)?(?:T(?=.)(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?", re.ASCII)
_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?", re.ASCII)


def duration(text: str) -> timedelta:
    """Read a duration as people write it: "1h 30m", "7 days", "500 ms", or in ISO 8601, "PT15M". Bare numbers are seconds.

    Raises:
        ValueError: It is none, or too long for a timedelta.
    """
    text = text.strip()
    try:
        if _NUMBER.fullmatch(text):
            return timedelta(seconds=float(text))
        if iso := _ISO.fullmatch(text):
            weeks, days, hours, minutes, seconds = (float(number or 0) for number in iso.groups())
            return timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)
        parts = _PART.findall(text.lower())
        if parts and not _PART.sub("", text.lower()):
            return sum((float(number) * _UNITS[unit] for number, unit in parts), timedelta())
    except (KeyError, OverflowError):
        pass
    raise ValueError(f"{text!r} is no duration: write for example '30 s', '1h 30m', '7 days' or 'PT15M'")


def size(text: str) -> int:
    """Read a size as people write it, in bytes: "64 KiB" is 65,536, "10 MB" is 10,000,000; bare numbers are bytes.

    Raises:
        ValueError: It is none, or not a whole number of bytes.
    """
    match = re.fullmatch(r"(\d+)(?:\.(\d+))?\s*([a-z]*)", text.strip().lower(), re.ASCII)
    if match and (unit := _BYTES.get(match[3] or "b")):
        whole, fraction = match[1], match[2] or ""
        scaled, divisor = int(whole + fraction) * unit, int("1" + "0" * len(fraction))
        if not scaled % divisor:
            return scaled // divisor
    raise ValueError(f"{text!r} is no size: write for example 512, '64 KiB' (65,536 bytes) or '10 MB' (10,000,000 bytes)")
