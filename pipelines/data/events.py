"""Events of a dynamic vision sensor, and how they become frames: pure functions.

An event says that the brightness of one pixel passed a threshold, up (ON) or down (OFF), at one time. Axes of frames:
T time steps, 2 polarities (0: OFF, 1: ON), H, W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

SplitBy = Literal["count", "time"]

LARGEST_COUNT = 255

Frames = npt.NDArray[np.uint8]


class BrokenEvents(ValueError):
    """This recording cannot be used; the text says why."""


@dataclass(frozen=True)
class Events:
    """N events in order of time.

    t: microseconds, int64 [N]. x, y: column and row of the sensor, from its top left, integers [N]. on: bool [N].
    sensor: its (height, width).
    """

    t: npt.NDArray[np.int64]
    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    on: npt.NDArray[np.bool_]
    sensor: tuple[int, int]

    def __len__(self) -> int:
        return len(self.t)

    def between(self, start: int, end: int) -> Events:
        """The events of start <= t < end. Raises BrokenEvents when there are none."""
        inside = (self.t >= start) & (self.t < end)
        if not inside.any():
            raise BrokenEvents(f"no events from {start} to {end} microseconds")
        return Events(self.t[inside], self.x[inside], self.y[inside], self.on[inside], self.sensor)


@dataclass(frozen=True)
class FrameRule:
    """How a recording becomes frames: `steps` of them, `size` pixels a side, of equal event count or equal time.

    Raises ValueError for a number below 1 or an unknown `by`.
    """

    steps: int
    size: int = 48
    by: SplitBy = "count"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.size < 1:
            raise ValueError(f"frames and frame size must be 1 or more, got {self.steps} and {self.size}")
        if self.by not in get_args(SplitBy):
            raise ValueError(f"frames are split by {' or '.join(get_args(SplitBy))}, got {self.by!r}")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(T, 2, H, W) of one sample."""
        return self.steps, 2, self.size, self.size


def to_frames(events: Events, rule: FrameRule) -> Frames:
    """Events of each step, polarity and place, uint8 [T, 2, H, W]; a count above 255 stays 255.

    Event i of N falls into step `i * T // N` (count), or into that of T equal parts of the time from the first event to
    the last (time). Column x of a sensor `width` pixels wide falls into column `x * W // width`, rows alike: whole
    events, of which every one counts once. Where the width is no multiple of W, columns gather unequal numbers of
    pixels (48 of 128: two or three).

    Raises BrokenEvents when there are no events, times go backwards, or a place is outside the sensor.
    """
    check_events(events)
    (height, width), size = events.sensor, rule.size
    rows = events.y.astype(np.int64) * size // height
    columns = events.x.astype(np.int64) * size // width
    place = ((_steps(events, rule) * 2 + events.on) * size + rows) * size + columns
    counts = np.bincount(place, minlength=int(np.prod(rule.shape)))
    return np.minimum(counts, LARGEST_COUNT).astype(np.uint8).reshape(rule.shape)


def _steps(events: Events, rule: FrameRule) -> npt.NDArray[np.int64]:
    count = len(events)
    if rule.by == "count":
        return np.arange(count, dtype=np.int64) * rule.steps // count
    first, last = int(events.t[0]), int(events.t[-1])
    return (events.t - first) * rule.steps // (last - first + 1)


def check_events(events: Events) -> None:
    """Raise BrokenEvents when there are no events, times go backwards, or a place is outside the sensor."""
    if len(events) == 0:
        raise BrokenEvents("no events")
    back = np.flatnonzero(events.t[1:] < events.t[:-1])
    if len(back):
        at = int(back[0])
        raise BrokenEvents(f"time goes backwards after event {at}: from {events.t[at]} to {events.t[at + 1]}")
    for name, place, end in (("row", events.y, events.sensor[0]), ("column", events.x, events.sensor[1])):
        low, high = int(place.min()), int(place.max())
        if low < 0 or high >= end:
            raise BrokenEvents(f"an event in {name} {high if high >= end else low}; the sensor has 0 to {end - 1}")
