"""Harnesses for the tests of the kit itself, which look at how it ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from repid_core.testing import Harness


@pytest.fixture
async def kit() -> AsyncIterator[Harness]:
    """Open; left without a look at what is left behind."""
    harness = Harness(check_leaks=False, start=datetime(2030, 1, 1, 12, tzinfo=UTC))
    await harness.__aenter__()
    yield harness
    await harness.close(check=False)
