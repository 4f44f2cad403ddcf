"""What repid-core and its plugins do per second, beside others."""

from __future__ import annotations
