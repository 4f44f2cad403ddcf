"""Task queues on Redis, one module each; what it imports is in the Python that was named for it."""

from __future__ import annotations
