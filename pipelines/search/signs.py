"""Signs of life of a search's trials: which one hangs, and its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray


@dataclass(frozen=True)
class _Beat:
    """What a rank was last heard of."""

    heard: float  # when
    since: float  # seconds in its phase, then
    phase: str

    def silent(self, now: float) -> float:
        """Seconds without progress; a data set may take hours to stage, but whoever stages it is heard of."""
        return now - self.heard + (0.0 if self.phase == "stage" else self.since)


@dataclass
class _Sign:
    actor: Any = None
    heard: float = 0.0  # of the trial, before its ranks are
    beats: dict[int, _Beat] = field(default_factory=dict)  # by rank

    def silent(self, now: float) -> tuple[float, str]:
        """Seconds without progress of any rank, and in which phase: ranks wait for each other."""
        beats = list(self.beats.values())  # another thread adds to it
        if not beats:
            return now - self.heard, "start"
        at_work = [beat for beat in beats if beat.phase != "end"]
        return min(((beat.silent(now), beat.phase) for beat in at_work), default=(0.0, "end"))


class Signs:
    """What trials were last heard of. One that makes no progress for `hang_after` seconds is ended, and named."""

    def __init__(self, hang_after: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._hang_after, self._clock = hang_after, clock
        self._signs: dict[int, _Sign] = {}
        self.hung: dict[int, str] = {}

    def take(self, number: int, item: Mapping[str, Any]) -> None:
        """A trial was heard of: its actor, once, or a pulse of a rank or, without one, of all that start anew."""
        if "actor" in item:
            self._signs[number] = _Sign(item["actor"], self._clock())
            self.hung.pop(number, None)
        elif "pulse" in item and (sign := self._signs.get(number)):
            pulse = item["pulse"]
            if "rank" in pulse:
                sign.beats[pulse["rank"]] = _Beat(self._clock(), pulse.get("since", 0.0), pulse["phase"])
            else:
                sign.heard, sign.beats = self._clock(), {}

    def forget(self, number: int) -> None:
        """The trial has ended."""
        self._signs.pop(number, None)

    def end_hung(self) -> None:
        """End every trial that hangs; Ray Tune then sees that its process is gone."""
        now = self._clock()
        for number, sign in list(self._signs.items()):
            silent, phase = sign.silent(now)
            if silent > self._hang_after:
                self.hung[number] = f"hung: nothing new for {silent:.0f} s in its phase {phase!r}"
                self.forget(number)
                ray.kill(sign.actor)
