"""How long will the run take, and what may it cost? From steps of the real loop on the real data, by one worker here.

The range is honest about what one worker cannot tell. Its lower end: quick steps, and workers that cost each other
nothing. Its upper end: slow steps, the least number of workers, and `efficiency`, the share of ideal scaling that is
assumed. Not in it: starting, staging, restarts, checkpoints that a slow store makes late.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.config import RunConfig, parse_config
from pipelines.data.cache import size
from pipelines.doctor import trial
from pipelines.doctor.check import Outcome
from pipelines.doctor.room import share
from pipelines.progress import Progress

STEPS = 30
_LIMIT_S = 1200.0


class Range(NamedTuple):
    """From, to."""

    low: float
    high: float


class Cost(NamedTuple):
    """Hours that a run takes; and what they cost, where a worker's hour has a price."""

    hours: Range
    price: Range | None


def calibrate(config: RunConfig, folder: Path, train_images: int) -> trial.Timing:
    """Time STEPS steps of one worker's share of the batch, with progress. Raises ServiceError where it cannot."""
    tree = config.model_dump(mode="json")
    tree["data"]["batch_size"] = share(config)
    tree["data"]["progressive"]["start"] = None  # the last resolution: the others are quicker
    tree["run"] |= {"workers": 1, "log_every": 1}
    tree["checkpoint"] |= {"every": None}
    alone = parse_config(tree, origin=config.name)
    total = min(STEPS + trial.WARM_UP, alone.total_steps(train_images))
    with Progress(total, "calibrating", "step") as progress:
        found = trial.run("time", alone, limit_s=_LIMIT_S, on_step=progress.advance, folder=str(folder), steps=STEPS)
    return trial.Timing(**found)


def cost(
    config: RunConfig,
    timing: trial.Timing,
    train: int,
    val: int,
    *,
    efficiency: float,
    price_per_hour: tuple[float, float] | None,
) -> Cost:
    """Hours of the whole run on so many images to train and to validate on, and the price at a worker's hour's."""
    quick, slow = (float(each) for each in np.quantile(timing.seconds, (0.25, 0.75)))
    steps, epochs = config.total_steps(train), config.total_epochs(train)
    most, least = config.run.most_workers, config.run.least_workers
    validating = epochs * val / most / timing.validation
    scaling = most / least / (efficiency if most > 1 else 1.0)
    hours = Range((steps * quick + validating) / 3600, (steps * slow + validating) * scaling / 3600)
    if price_per_hour is None:
        return Cost(hours, None)
    return Cost(hours, Range(hours.low * most * price_per_hour[0], hours.high * least * price_per_hour[1]))


def outcome(config: RunConfig, timing: trial.Timing, found: Cost, efficiency: float) -> Outcome:
    """What a calibration says, as a check that has passed: how long is too long is for a person to say."""
    median = float(np.median(timing.seconds))
    measured = (
        f"{len(timing.seconds)} steps of {share(config)} images on one {timing.device} worker took {median:.3g} s in "
        f"the median, validation {timing.validation:.3g} images/s, {size(timing.peak)} at the most"
    )
    price = f"; price {_span(found.price)}" if found.price else ""
    return "pass", f"{_span(found.hours)} hours{price}. {_assumed(config, efficiency)}: {measured}", ""


def _assumed(config: RunConfig, efficiency: float) -> str:
    if config.run.most_workers == 1:
        return "1 worker like this machine's"
    return f"{config.run.workers} workers like this machine's, ideal scaling to {efficiency:.0%} of it"


def _span(span: Range | Sequence[float]) -> str:
    low, high = (
        f"{value:,.0f}" if value >= 1000 else f"{value:.2g}" if value < 10 else f"{value:.1f}" for value in span
    )
    return low if low == high else f"{low} to {high}"
