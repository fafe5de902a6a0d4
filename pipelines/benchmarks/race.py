"""Contenders side by side, so that what else a machine does hits all of them.

They run pinned to as many cores as they have threads, in rounds in which each runs once, for long enough to be timed.
Figures are medians over rounds, a ratio is the median of the rounds' own ratios, and the spread is that of these.
Beside them is the core's float32 peak, as the same rounds found it.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from agmm.packed import native
from pipelines.benchmarks import row
from pipelines.errors import UserError
from pipelines.progress import Progress

PEAK = "one core's float32 peak"
_LONG_ENOUGH_S = 0.02  # of one contender in one round


@dataclass
class Contender:
    """Something timed: `work` once, again and again. `seconds` has one mean a round.

    work_done: of one time, where it is not what the others do.
    """

    name: str
    work: Callable[[], object]
    work_done: float | None = None
    seconds: list[float] = field(default_factory=list)
    repeats: int = 1

    def prepare(self) -> None:
        """Warm up, and find out how often it has to run to be timed."""
        for _ in range(2):
            began = time.perf_counter()
            self.work()
            once = time.perf_counter() - began
        self.repeats = max(1, round(_LONG_ENOUGH_S / once))

    def run(self) -> None:
        """One round."""
        began = time.perf_counter()
        for _ in range(self.repeats):
            self.work()
        self.seconds.append((time.perf_counter() - began) / self.repeats)

    @property
    def typical(self) -> float:
        """Seconds, the median over rounds."""
        return median(self.seconds)


def race(contenders: Sequence[Contender], rounds: int, progress: Progress) -> None:
    """So many rounds, after a warm-up; each counts one for `progress`."""
    for contender in contenders:
        contender.prepare()
    for _ in range(rounds):
        for contender in contenders:
            contender.run()
        progress.advance()


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """This process on so many cores, and torch with as many threads. Raises UserError where there are not so many."""
    cores, before = os.sched_getaffinity(0), torch.get_num_threads()
    if threads > len(cores):
        raise UserError(f"--threads {threads} wants as many cores, and {len(cores)} are there.")
    os.sched_setaffinity(0, sorted(cores)[-threads:])
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(before)


def peak() -> Contender:
    """What one core can do at the most in float32: multiply-adds that never leave its registers."""
    rounds = 100_000
    return Contender(PEAK, lambda: native.multiply_adds(rounds), native.multiply_adds(rounds) / 1e9)


def paired(
    name: str, ours: Contender, peer: Contender, unit: str, work: float = 1.0, peer_work: float = 1.0
) -> dict[str, Any]:
    """A row of two rates, of so much work each, with the ratio as the rounds had it."""
    ratios = [work / mine * theirs / peer_work for mine, theirs in zip(ours.seconds, peer.seconds, strict=True)]
    low, typical, high = quantiles(ratios, n=4)
    rates = row(name, work / ours.typical, unit, peer_work / peer.typical)
    return rates | {"ratio": typical, "spread": (high - low) / typical}


def machine() -> dict[str, Any]:
    """Hardware and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="ascii").splitlines() if cpuinfo.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": named[0] if named else platform.processor(),
        "kernels": next(iter(native.available()), "none"),
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "onnxruntime": version("onnxruntime") if importlib.util.find_spec("onnxruntime") else "",
    }
