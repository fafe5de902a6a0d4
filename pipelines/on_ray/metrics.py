"""What operators see of a run: Prometheus metrics at Ray's own endpoint, of the node that the driver is on.

A listener of the board: what workers tell anyhow is set as Ray's metrics, which each node's agent serves beside Ray's
own, with the prefix `ray_`. Where Ray has no agent nothing is served and nothing is said. Seconds by phase are
counters, so that `rate` over any time gives the shares, also of a phase that has not ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pipelines.loop.keeping import ATTEMPT_TAG, CHECKPOINT_TAG
from pipelines.loop.pulse import CACHE_BYTES
from pipelines.on_ray.watchdog import RESTART

Item = Mapping[str, Any]
RUN_TAGS = ("run", "recipe")


class Kind(NamedTuple):
    """A metric: what it says, the tags that it has beside the run's, and whether it only grows."""

    what: str
    tags: tuple[str, ...] = ()
    grows: bool = False


METRICS = {
    "agmm_images_per_second": Kind("training images a second, all ranks"),
    "agmm_mfu": Kind("model FLOPs as a share of a timed matrix product's, 0 to 1"),
    "agmm_loss": Kind("training loss of the last window"),
    "agmm_top1": Kind("training top-1 accuracy of the last window, 0 to 1"),
    "agmm_val_top1": Kind("validation top-1 accuracy of the last epoch, 0 to 1"),
    "agmm_step": Kind("optimiser steps done"),
    "agmm_workers": Kind("ranks that are alive"),
    "agmm_attempt": Kind("number of the attempt: times that workers started"),
    "agmm_checkpoint_timestamp_seconds": Kind("when the newest checkpoint was committed, Unix time"),
    "agmm_data_cache_bytes": Kind("what the cache of staged data sets takes on a node", ("host",)),
    "agmm_phase_seconds": Kind("seconds that a rank has spent in a phase", ("rank", "phase"), grows=True),
}
_ROWS = {
    "train/images_per_second": "agmm_images_per_second",
    "train/mfu": "agmm_mfu",
    "train/loss": "agmm_loss",
    "train/top1": "agmm_top1",
    "val/top1": "agmm_val_top1",
}


def exported_name(name: str) -> str:
    """A metric as a scrape of Ray's endpoint has it."""
    return f"ray_{name}_total" if METRICS[name].grows else f"ray_{name}"


class Operators:
    """The metrics of one run, fed by the items of its board: `metrics`, `tag` and `pulse`.

    record: sets a gauge, or adds to a counter, of METRICS, with the tags that it has beside the run's.
    """

    def __init__(self, record: Callable[[str, float, Mapping[str, str]], None]) -> None:
        self._record = record
        self._lives: dict[int, str] = {}  # the process of each rank
        self._seconds: dict[tuple[str, str], float] = {}  # by life and phase, as told last

    def row(self, item: Item) -> None:
        """A row of metrics at a step."""
        self._record("agmm_step", item["step"], {})
        for key, name in _ROWS.items():
            if key in item["metrics"]:
                self._record(name, item["metrics"][key], {})

    def tag(self, item: Item) -> None:
        """A tag of the run: a checkpoint, or the number of an attempt."""
        if item["tag"] == CHECKPOINT_TAG and item["value"].startswith("attempt-"):
            self._record("agmm_checkpoint_timestamp_seconds", time.time(), {})
        elif item["tag"] == ATTEMPT_TAG:
            self._record("agmm_attempt", float(item["value"]), {})

    def pulse(self, item: Item) -> None:
        """A pulse of a rank; the controller's, that workers start anew."""
        if item == RESTART:
            self._lives.clear()
        else:
            self._hear(item["pulse"])
        self._record("agmm_workers", len(self._lives), {})

    def _hear(self, pulse: Mapping[str, Any]) -> None:
        rank, life = pulse["rank"], pulse["life"]
        if pulse["phase"] == "end":
            self._lives.pop(rank, None)
        else:
            self._lives[rank] = life
        for phase, seconds in pulse["seconds"].items():
            more = seconds - self._seconds.get((life, phase), 0.0)
            self._seconds[life, phase] = seconds
            if more > 0:
                self._record("agmm_phase_seconds", more, {"rank": str(rank), "phase": phase})
        if CACHE_BYTES in pulse["notes"]:
            self._record("agmm_data_cache_bytes", pulse["notes"][CACHE_BYTES], {"host": pulse["host"]})


def ray_metrics(run_id: str, recipe: str) -> Callable[[str, float, Mapping[str, str]], None]:
    """What records the metrics of a run in the Ray that this process is connected to."""
    from ray.util.metrics import Counter, Gauge

    made: dict[str, Any] = {}
    for name, kind in METRICS.items():
        metric = (Counter if kind.grows else Gauge)(name, kind.what, tag_keys=(*RUN_TAGS, *kind.tags))
        made[name] = metric.set_default_tags({"run": run_id, "recipe": recipe})

    def record(name: str, value: float, tags: Mapping[str, str]) -> None:
        metric = made[name]
        (metric.inc if METRICS[name].grows else metric.set)(value, dict(tags))

    return record
