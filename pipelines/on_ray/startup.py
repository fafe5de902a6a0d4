"""How long the parts of a worker's start took, as one line when its first step is done."""

from __future__ import annotations

import time
from collections.abc import Callable

LAST = "first step"


class Startup:
    """A stopwatch that starts now. `mark` ends a part; after `LAST` it calls `done` with the parts, once."""

    def __init__(self, done: Callable[[dict[str, float]], None]) -> None:
        self._done: Callable[[dict[str, float]], None] | None = done
        self._parts: dict[str, float] = {}
        self._since = time.perf_counter()

    def mark(self, part: str) -> None:
        """The part is over: what follows is the next one's."""
        if self._done is None:
            return
        now = time.perf_counter()
        self._parts[part], self._since = now - self._since, now
        if part == LAST:
            done, self._done = self._done, None
            done(self._parts)


def describe(parts: dict[str, float], total: float, workers: int) -> str:
    """`2 workers started in 12.3 s: processes 8.0, network 0.3, ...`; `total` is from when they were asked for."""
    known = {"processes": max(total - sum(parts.values()), 0.0)} | parts
    who = "1 worker" if workers == 1 else f"{workers} workers"
    return f"{who} started in {total:.1f} s: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in known.items())
