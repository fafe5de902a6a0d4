"""A data set before it is built: named classes and two sequences of labelled images or recordings of events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import numpy.typing as npt

from pipelines.data.events import Events, FrameRule

SPLITS = ("train", "val")

Payload = bytes | npt.NDArray[np.uint8] | Events


@dataclass(frozen=True)
class Sample:
    """One labelled image or recording.

    `load` gives an image file's bytes, RGB pixels uint8 [height, width, 3], or Events; it may raise OSError, and
    BrokenImage or BrokenEvents.
    """

    label: int
    name: str
    load: Callable[[], Payload]


@dataclass(frozen=True)
class Reencoding:
    """Images with a longer short side are resized to this one, in pixels, and stored as JPEG of this quality."""

    short_side: int
    quality: int


@dataclass(frozen=True)
class Source:
    """A data set as it came: `splits` has "train" and "val"; labels index `classes`.

    frames: how its recordings become frames; None for images. settings: numbers of a simulation, for the manifest.
    reencoding: how large images are made smaller, for the manifest as well.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    splits: Mapping[str, Sequence[Sample]]
    bytes_estimate: int
    frames: FrameRule | None = None
    settings: Mapping[str, float] = field(default_factory=dict)
    reencoding: Reencoding | None = None

    @property
    def unit(self) -> str:
        """What its samples are called."""
        return "image" if self.frames is None else "recording"

    @property
    def bytes_needed(self) -> int:
        """About what the built data set takes on disk."""
        if self.frames is None:
            return self.bytes_estimate
        return prod(self.frames.shape) * sum(len(samples) for samples in self.splits.values())
