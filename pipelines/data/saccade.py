"""Events from images: a simulation of how CIFAR10-DVS was recorded.

Li et al. (2017, doi 10.3389/fnins.2017.00309) enlarged CIFAR-10's images, moved them on a screen along a closed loop,
again and again, and recorded the screen with a DVS128. Here the image moves by whole pixels of a 128 x 128 sensor along
the four diagonal legs of a square that stands on its corner. A pixel keeps the logarithm of the brightness at its last
event and fires when the present one is a threshold above (ON) or below (OFF): once for every threshold passed, at the
time at which a brightness that changes linearly within a step passes it. There is no noise: the same image gives the
same events.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

from pipelines.data.aedat import DVS128
from pipelines.data.events import Events, FrameRule
from pipelines.data.images import prepare, rgb_pixels
from pipelines.data.samples import Payload, Sample, Source
from pipelines.errors import UserError

# Of the natural logarithm of brightness: about 90,000 events of a CIFAR-10 image.
THRESHOLD = 0.3
# Added to 0..255 before the logarithm: the light of a dark screen.
BLACK = 20.0
# Steps of one pixel in each of the four legs, loops, and microseconds of a loop.
LEG, LOOPS, LOOP_US = 6, 3, 200_000

# Ticks of a step; those of all steps fit into 16 bits, which NumPy sorts in linear time.
_TICKS = 256
_SIDE = DVS128[0]
_GREY = np.array([0.299, 0.587, 0.114], np.float32)

_Image = npt.NDArray[np.float32]


def simulated(source: Source, name: str | None = None) -> Source:
    """A source of images as a source of recordings; its name ends in "_events" where none is given.

    Raises UserError where it holds recordings already.
    """
    if source.frames is not None:
        raise UserError(f"{source.name} holds recordings of events already. Build it without --events-from.")
    splits = {
        split: [Sample(sample.label, sample.name, partial(_record, sample.load)) for sample in samples]
        for split, samples in source.splits.items()
    }
    settings = {"threshold": THRESHOLD, "black": BLACK, "leg_pixels": LEG, "loops": LOOPS, "loop_us": LOOP_US}
    return replace(
        source,
        name=name or f"{source.name}_events",
        kind=f"saccade of {source.kind}",
        splits=splits,
        frames=FrameRule(10),
        settings=settings,
    )


def _record(load: Callable[[], Payload]) -> Events:
    payload = load()
    assert not isinstance(payload, Events)
    return saccade(on_screen(rgb_pixels(prepare(payload))))


def on_screen(image: npt.NDArray[np.uint8]) -> _Image:
    """The brightness of what the sensor may see of RGB pixels [height, width, 3]: 0..255, [128 + 2 LEG] squared.

    The central square, enlarged with bicubic interpolation as for CIFAR10-DVS, or shrunk by area.
    """
    height, width = image.shape[:2]
    side, target = min(height, width), _SIDE + 2 * LEG
    top, left = (height - side) // 2, (width - side) // 2
    grey = image[top : top + side, left : left + side].astype(np.float32) @ _GREY
    method = cv2.INTER_CUBIC if side < target else cv2.INTER_AREA
    return np.asarray(cv2.resize(grey, (target, target), interpolation=method), np.float32).clip(0, 255)


def path() -> list[tuple[int, int]]:
    """(top, left) of what the sensor sees at the start and after each step: `LOOPS` times the four legs."""
    directions = [(1, 1), (1, -1), (-1, -1), (-1, 1)]
    steps = [direction for direction in directions for _ in range(LEG)] * LOOPS
    places = np.cumsum([(0, LEG), *steps], axis=0)
    return [(int(top), int(left)) for top, left in places]


def saccade(screen: _Image) -> Events:
    """What a sensor records of brightness 0..255 [128 + 2 LEG, 128 + 2 LEG] on its `path`, in order of time."""
    level = np.log(screen + np.float32(BLACK)) / np.float32(THRESHOLD)
    windows = [level[top : top + _SIDE, left : left + _SIDE].ravel() for top, left in path()]
    last, places, ticks, signs = windows[0].copy(), [], [], []
    for step, (before, now) in enumerate(pairwise(windows)):
        place, part, on = _fire(last, before, now)
        places.append(place)
        signs.append(on)
        ticks.append((part * (_TICKS - 1) + step * _TICKS).astype(np.uint16))
    time, place = np.concatenate(ticks), np.concatenate(places)
    order = np.argsort(time, kind="stable")
    y, x = np.divmod(place[order].astype(np.int16), _SIDE)
    tick_us = LOOP_US / (4 * LEG * _TICKS)
    return Events((time[order] * tick_us).astype(np.int64), x, y, np.concatenate(signs)[order], DVS128)


def _fire(
    last: _Image, before: _Image, now: _Image
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Events of one step: pixel, part of the step that has passed, whether ON. Levels are in thresholds.

    last: the level of each pixel's last event, moved on in place.
    """
    whole = np.trunc(now - last)
    pixel = np.flatnonzero(whole)
    passed = whole[pixel]
    times = np.abs(passed).astype(np.intp)
    sign, start, end, base = np.sign(passed), before[pixel], now[pixel], last[pixel]
    nth = np.arange(1, times.sum() + 1) - np.repeat(np.cumsum(times) - times, times)
    each = np.repeat(np.arange(len(pixel)), times)
    part = (base[each] + sign[each] * nth.astype(np.float32) - start[each]) / (end - start)[each]
    last += whole
    return pixel[each], part.clip(0, 1), sign[each] > 0
