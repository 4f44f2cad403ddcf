"""How long a thread may compute while others wait: one setting of the whole process, which several brokers may want changed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Switching:
    """Who wants threads to take turns how often."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted: list[float] = []
        self._before = self._set = 0.0

    @contextmanager
    def at_least_every(self, seconds: float) -> Iterator[None]:
        """Have Python's threads take turns so often, or more often.

        The shortest time that is wanted holds; with the last who wants one ends what was there before comes back. What
        somebody else has set meanwhile stays.

        Args:
            seconds: For how long a thread may keep the interpreter's lock while others wait for it.
        """
        with self._lock:
            if not self._wanted:
                self._before = self._set = sys.getswitchinterval()
            self._wanted.append(seconds)
            self._adjust()
        try:
            yield
        finally:
            with self._lock:
                self._wanted.remove(seconds)
                self._adjust()

    def _adjust(self) -> None:
        if sys.getswitchinterval() == self._set:
            sys.setswitchinterval(min([self._before, *self._wanted]))
            self._set = sys.getswitchinterval()  # in whole microseconds


switching = _Switching()
