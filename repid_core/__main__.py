"""`python -m repid_core`, and what the console script `repid` calls."""

from __future__ import annotations

import sys


def run() -> None:
    """Run the `repid` command, or say how to install what it needs."""
    try:
        from repid_core.cli import main  # noqa: PLC0415 — what may be missing

        main(prog_name="repid")
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in {"click", "rich"}:
            raise
        sys.exit("the repid command needs click and rich: pip install 'repid-core[cli]'")


if __name__ == "__main__":
    run()
