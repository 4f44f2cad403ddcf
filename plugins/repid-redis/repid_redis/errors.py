"""Errors in words."""

from __future__ import annotations


def explain(error: Exception, address: str) -> str:
    return f"{address}: {error}"
