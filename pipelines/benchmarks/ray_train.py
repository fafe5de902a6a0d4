"""A run's loop under Ray Train, with all that `agmm train` has around it, against the same loop under torchrun.

Launches of both take turns, each with workers pinned to a core and one thread. A step's time is what the run itself
logs: the mean over a few steps. Processors' time is measured beside it: other work on the machine, which makes a step
longer, is not in it. The peer is torchrun.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from pipelines.benchmarks import circumstances, row, small_data
from pipelines.benchmarks.launching import SIDES, USUAL, Launch, Size, launch
from pipelines.benchmarks.race import machine
from pipelines.errors import UserError
from pipelines.progress import Progress, Say


def bench(rounds: int, say: Say, size: Size = USUAL) -> dict[str, Any]:
    """Launch both so many times in turns; returns rows, and the step times of every launch.

    Raises UserError without psutil; ServiceError where a launch fails, with what it said last.
    """
    if importlib.util.find_spec("psutil") is None:
        raise UserError("`agmm bench ray` needs psutil: pip install 'agmm[service]'.")
    found: dict[str, list[Launch]] = {side: [] for side in SIDES}
    with (
        tempfile.TemporaryDirectory(prefix="agmm-bench-") as scratch,
        Progress(2 * rounds, "launches", " launch") as progress,
    ):
        data = small_data(Path(scratch), train=size.steps * size.batch_size, size=size.resolution)
        for turn in range(rounds):
            for side in SIDES if turn % 2 else reversed(SIDES):
                folder = Path(scratch) / f"{side}-{turn}"
                latest = launch(side, folder, data, size)
                say(f"{side}: {1000 * median(latest.steps):.2f} ms a step, started in {latest.startup:.1f} s")
                found[side].append(latest)
                progress.advance()
    launches = {side: [asdict(each) for each in its] for side, its in found.items()}
    about = {"rounds": rounds, **asdict(size), "launches": launches}
    return {"rows": _rows(found["ray"], found["torchrun"]), **about, **machine(), **circumstances()}


def _rows(ours: list[Launch], peer: list[Launch]) -> list[dict[str, Any]]:
    """Ratios are medians of the rounds' own, and `spread` is their quartiles' distance by it."""

    def paired(name: str, figure: Callable[[Launch], float], unit: str) -> dict[str, Any]:
        return _paired(name, [figure(each) for each in ours], [figure(each) for each in peer], unit)

    return [
        paired("a step, median", lambda its: 1000 * median(its.steps), "ms"),
        paired("a step, fastest tenth", lambda its: 1000 * _tenth(its.steps), "ms"),
        paired("a step, processors of the workers", lambda its: 1000 * its.processor, "ms"),
        paired("cores busy beside the workers", lambda its: its.beside, "cores"),
        paired("until the first step", lambda its: its.startup, "s"),
    ]


def _tenth(values: list[float]) -> float:
    """What a tenth is below: other work on the machine only ever adds."""
    return quantiles(values, n=10, method="inclusive")[0]


def _paired(name: str, ours: list[float], peer: list[float], unit: str) -> dict[str, Any]:
    if min(peer) == 0:  # less than the clock of processors shows
        return row(name, median(ours), unit, 0.0) | {"spread": None}
    low, typical, high = quantiles([mine / theirs for mine, theirs in zip(ours, peer, strict=True)], n=4)
    return row(name, median(ours), unit, median(peer)) | {"ratio": typical, "spread": (high - low) / typical}
