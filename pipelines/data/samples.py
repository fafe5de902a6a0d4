"""A data set before it is built: named classes and two sequences of labelled images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SPLITS = ("train", "val")

Payload = bytes | npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """One labelled image. `load` gives a file's bytes, or RGB pixels uint8 [height, width, 3]; it may raise OSError."""

    label: int
    name: str
    load: Callable[[], Payload]


@dataclass(frozen=True)
class Source:
    """A data set as it came: `splits` has "train" and "val"; labels index `classes`."""

    name: str
    kind: str
    classes: tuple[str, ...]
    splits: Mapping[str, Sequence[Sample]]
    bytes_estimate: int
