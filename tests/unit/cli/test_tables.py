"""Progress is drawn where it can be drawn over, and leaves nothing behind."""

from __future__ import annotations

import sys
from io import StringIO

import pytest

from repid_core.cli.tables import Bar


class Screen(StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "term", "drawn"), [(Screen, "xterm", True), (Screen, "dumb", False), (StringIO, "xterm", False)]
)
def test_progress_is_drawn_where_a_line_can_be_drawn_over(monkeypatch, stream, term, drawn):
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setenv("TERM", term)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    with Bar("mail: retried", 2) as bar:
        bar.update(1)
    assert ("mail: retried" in sys.stderr.getvalue()) == drawn
    assert bool(sys.stderr.getvalue()) == drawn
