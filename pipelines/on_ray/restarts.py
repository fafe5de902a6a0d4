"""Why the workers of a run were started anew: a tag of the run, since later nobody else tells that a host was lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from pipelines.on_ray.causes import cause

TAG = "agmm.restarts"
_MOST, _LONGEST = 10, 400  # restarts that are kept, the newest; characters of a reason


class Restarts:
    """What workers of a run were lost, and how it went on.

    tell: takes an item for the board, and must not raise.
    """

    def __init__(self, tell: Callable[[Mapping[str, Any]], None]) -> None:
        self._tell = tell
        self._places: Mapping[int, str] = {}
        self._told: list[str] = []
        self._waits = False  # for workers that take the place of those that were lost

    def placed(self, places: Mapping[int, str]) -> None:
        """Workers run now, each rank on the host of that name: of one that is lost it cannot be asked any more."""
        self._places = places

    def failed(self, error: Exception) -> None:
        """Say why Ray Train starts the workers again; `error` is its own."""
        why = "; ".join(cause(error, self._places).splitlines())[:_LONGEST]
        self._tell({"say": f"starting again: {why}"})
        self._told = [*self._told[1 - _MOST :], f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC: {why}"]
        self._waits = True
        self._tag()

    def starting(self, workers: int) -> None:
        """So many workers start, and if it is after a failure, that is how the run goes on."""
        if self._waits:
            self._waits = False
            self._told[-1] += f"; went on with {workers} worker{'s' * (workers > 1)}"
            self._tag()

    def _tag(self) -> None:
        self._tell({"tag": TAG, "value": "\n".join(self._told)})
