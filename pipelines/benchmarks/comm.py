"""What workers send each other of their gradients: bytes as the kernel counts them, and seconds, of each exchange.

Several ranks train one network over gloo on this machine. The peer of every row is float32, DDP's own.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, get_args

from pipelines.benchmarks import circumstances, row
from pipelines.benchmarks.race import machine
from pipelines.benchmarks.ranks import together
from pipelines.config import GradientsConfig
from pipelines.progress import Say

KINDS: tuple[str, ...] = get_args(GradientsConfig.model_fields["kind"].annotation)


@dataclass(frozen=True)
class Size:
    """What is trained; by default a ResNet-18 for ImageNet on small images. `resolution` in pixels, a rank's batch."""

    arch: str = "agmm_resnet18"
    width: int = 64
    classes: int = 1000
    stem: str = "imagenet"
    resolution: int = 64
    batch_size: int = 4
    time_steps: int = 2


def bench(rounds: int, workers: int, say: Say, size: Size = Size()) -> dict[str, Any]:
    """Exchange and train in rounds, in which each kind has its turn; returns rank 0's figures.

    Bytes of a step are a mean over one whole step and those between it and the next, as `whole_every` has it.

    Raises ServiceError where a rank fails; UserError where bytes cannot be counted.
    """
    say(f"{workers} workers exchange the gradients of {size.arch}, width {size.width}")
    job = {"size": asdict(size), "rounds": rounds, "kinds": list(KINDS)}
    with tempfile.TemporaryDirectory(prefix="agmm-bench-") as scratch:
        found = together("pipelines.benchmarks.comm_rank:measure", job, workers, Path(scratch))[0]
    rows = [each for kind in KINDS for each in _rows(kind, found[kind], found["fp32"])]
    about = {"workers": workers, "rounds": rounds, **asdict(size)}
    return {"rows": rows, "parameters": found["parameters"], **about, **machine(), **circumstances()}


def _rows(kind: str, its: dict[str, Any], peer: dict[str, Any]) -> list[dict[str, Any]]:
    every = GradientsConfig().whole_every
    whole = its["whole"] if its["whole"] is not None else its["bytes"]
    mean = (its["bytes"] * (every - 1) + whole) / every
    megabytes = [(f"{kind}: a rank sends, a step", mean)]
    if its["whole"] is not None:
        megabytes += [(f"{kind}: the same, between whole steps", its["bytes"]), (f"{kind}: in a whole step", whole)]
    return [
        *(row(name, count / 1e6, "MB", peer["bytes"] / 1e6) | {"spread": None} for name, count in megabytes),
        _times(f"{kind}: the exchange alone", its["exchange"], peer["exchange"]),
        _times(f"{kind}: a rank's processor in it", its["processor"], peer["processor"]),
        _times(f"{kind}: a training step", its["step"], peer["step"]),
    ]


def _times(name: str, ours: list[float], peer: list[float]) -> dict[str, Any]:
    """Milliseconds; the ratio is the median of the rounds' own, the spread that of these."""
    low, typical, high = quantiles([mine / theirs for mine, theirs in zip(ours, peer, strict=True)], n=4)
    found = row(name, 1000 * median(ours), "ms", 1000 * median(peer))
    return found | {"ratio": typical, "spread": (high - low) / typical}
