"""Task queues side by side on one server: see README.md in the folder above."""

from __future__ import annotations
