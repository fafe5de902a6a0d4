"""Does a worker's step fit into memory? Measured on two small batches, drawn as a line in T x batch.

What autograd keeps of a step grows with the images of a batch and with T, and everything else does not: weights,
momentum, Python and torch. T is the recipe's own, so that two batches give both parts of the line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipelines.config import RunConfig
from pipelines.data.cache import size
from pipelines.doctor import trial
from pipelines.doctor.check import Outcome
from pipelines.doctor.room import Nodes, most_together, share
from pipelines.progress import Say

LIMIT_S = 180.0
_SMALL, _LARGER = 2, 8  # images of the two batches
_BATCHES_AHEAD = 4  # of uint8 images, that a loader has made before they are used
_USABLE = 0.95  # Ray kills a worker when more than that of a node's memory is taken


class Line(NamedTuple):
    """Bytes of a worker: `fixed`, and `per_image` with all its time steps."""

    fixed: float
    per_image: float

    def at(self, images: float) -> float:
        """Bytes at a worker's share of the batch."""
        return self.fixed + self.per_image * images

    def most(self, room: float) -> int:
        """Images that fit into so many bytes."""
        return max(0, int((room - self.fixed) / self.per_image))


def line_through(base: float, peaks: Sequence[tuple[int, float]], image_bytes: float) -> Line:
    """From what was taken before the first step, and (images, peak) of two batches, or of the only one there can be."""
    (few, low), (many, high) = peaks[0], peaks[-1]
    slope = (high - low) / (many - few) if many > few else (low - base) / few
    slope = max(slope, 1.0)  # a network so small that the allocator's steps hide it
    return Line(max(low - slope * few, base), slope + image_bytes)


def memory(config: RunConfig, nodes: Nodes, say: Say) -> Outcome:
    """The workers that may share a node fit into what is free there; says the largest batch that does."""
    say("trying a worker's step, for the memory that it takes")
    images = share(config)
    batches = sorted({min(_SMALL, images), min(_LARGER, images)})
    found = trial.run("memory", config, limit_s=LIMIT_S, batches=batches)
    line = line_through(found["base"], found["peaks"], _image_bytes(config) if found["device"] == "cpu" else 0)
    line = line._replace(fixed=line.fixed + _beside(config, found))
    return _judged(config, line, images, _tightest(config, nodes, found))


def _beside(config: RunConfig, found: Mapping[str, Any]) -> float:
    """Of weights and optimiser's state: what one worker alone without checkpoints has no copies of.

    A checkpoint's copy, which the thread that stores it holds, in the CPU's memory; DDP's of the gradients.
    """
    copied = found["weights"] + found["optimizer"] if found["device"] == "cpu" else 0
    return float(copied + (found["weights"] if config.run.most_workers > 1 else 0))


def _image_bytes(config: RunConfig) -> float:
    planes = 3 if config.model.in_chans == 3 else 2 * config.model.time_steps
    return _BATCHES_AHEAD * planes * config.data.resolution**2


def _tightest(config: RunConfig, nodes: Nodes, found: Mapping[str, Any]) -> tuple[float, int, str]:
    """(bytes for one worker, workers there, where) of the place with the least room for each."""
    if found["device"] == "cuda":
        return found["free"] * _USABLE, 1, "this machine's GPU"
    rooms = [(node["look"]["memory"] * _USABLE, most_together(config, node), node["node"]) for node in nodes]
    free, together, where = min(rooms, key=lambda room: room[0] / room[1])
    return free / together, together, where


def _judged(config: RunConfig, line: Line, images: int, place: tuple[float, int, str]) -> Outcome:
    room, together, where = place
    needed, steps = line.at(images), config.model.time_steps
    largest = line.most(room) * config.run.most_workers
    words = (
        f"a worker takes {size(needed)} for {images} images at T = {steps}, {size(line.fixed)} and "
        f"{size(line.per_image)} an image; {where} has {size(room)} for each of {together}; "
        f"data.batch_size up to {largest} fits"
    )
    if needed <= room:
        return "pass", words, ""
    if largest == 0:
        return "fail", f"{words}.", "Not one image fits: lower model.time_steps, model.width or data.resolution."
    return (
        "fail",
        f"{words}.",
        f"Set data.batch_size to {largest} or less, lower model.time_steps, or spread the workers.",
    )
