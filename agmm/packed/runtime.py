"""An artifact that answers: images in, logits out. It needs no torch; with the native kernels it is fast."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agmm.library import VARIABLE
from agmm.packed import native, reference
from agmm.packed.artifact import Artifact, read
from agmm.packed.cost import mac_count
from agmm.packed.description import Description, Input
from agmm.packed.files import shown
from agmm.packed.reference import Counts

REFERENCE = "reference"
# Bytes of float32 images that are prepared at once; ten thousand would take as many times the memory, and be no faster.
_BYTES_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Measured:
    """An inference with what it took, over all its images.

    Attributes:
        logits: mean over T, float32 `[B, K]`.
        seconds: of the network, without decoding and resizing.
        spikes, neurons: how many fired of how many, over all steps.
        sops: spikes that arrived at an output of a binary convolution.
        macs: multiplications with additions, in stem, projections, gates and head.

    """

    logits: NDArray[np.float32]
    seconds: float
    spikes: int
    neurons: int
    sops: int
    macs: int


class Runtime:
    """A packed network, ready to predict. Use `load`.

    The native kernels copy the weights in their own layout; those of the artifact are not kept beside them. Without
    native kernels the reference runs, with a RuntimeWarning unless it was asked for.

    Args:
        artifact: what to run.
        kernels: one of `native.available()`, or `reference`; default AGMM_KERNELS, or the fastest that is there.
        threads: of the native kernels.

    Raises:
        ValueError: for kernels that this machine or installation has not.

    """

    def __init__(self, artifact: Artifact, *, kernels: str | None = None, threads: int = 1) -> None:
        self.description, self.kernels = artifact.description, _choose(kernels)
        self._run_batch: Callable[[NDArray[np.float32]], tuple[NDArray[Any], Counts]]
        if self.kernels == REFERENCE:
            self._run_batch = partial(reference.run, artifact.description, artifact.tensors)
        else:
            network = native.NativeNetwork(self.description, artifact.tensors, threads=threads, path=self.kernels)
            self._run_batch = network.run_counted

    def __call__(self, images: ArrayLike) -> NDArray[np.float32]:
        """uint8 images of the artifact's size to mean logits over T, float32 `[B, K]`.

        NumPy or torch, `[B, H, W, C]` or `[B, C, H, W]`; frames of events `[B, T, C, H, W]`. Raises ValueError for any
        other shape or type.
        """
        return self.measure(images).logits

    def measure(self, images: ArrayLike) -> Measured:
        """As a call, with the time, spikes and operations that it took."""
        batch = _checked(images, self.description)
        parts = [self._run(batch[start : start + self._chunk]) for start in range(0, len(batch), self._chunk)]
        classes = self.description.num_classes
        taken = self.description.input
        return Measured(
            logits=np.concatenate([np.empty((0, classes), np.float32), *(logits for logits, _, _ in parts)]),
            seconds=sum(seconds for _, seconds, _ in parts),
            spikes=sum(sum(counts.spikes) for *_, counts in parts),
            neurons=sum(sum(counts.neurons) for *_, counts in parts),
            sops=sum(sum(counts.sops) for *_, counts in parts),
            macs=len(batch) * mac_count(self.description, taken.height, taken.width),
        )

    def _run(self, batch: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float, Counts]:
        inputs, began = normalised(batch, self.description.input), time.perf_counter()
        logits, counts = self._run_batch(inputs)
        return logits.astype(np.float32, copy=False), time.perf_counter() - began, counts

    @property
    def _chunk(self) -> int:
        taken = self.description.input
        frames = self.description.time_steps if taken.frames else 1
        return max(1, _BYTES_AT_ONCE // (4 * frames * taken.channels * taken.height * taken.width))


def load(path: str | PathLike[str], *, kernels: str | None = None, threads: int = 1) -> Runtime:
    """The network in a file of `agmm export --to packed`; no code of it runs.

    Raises:
        Refused: for a file that is no whole artifact of this version (a ValueError).
        ValueError: see `Runtime`.
        OSError: where it cannot be read.

    """
    return Runtime(read(Path(path)), kernels=kernels, threads=threads)


def normalised(batch: NDArray[np.uint8], taken: Input) -> NDArray[np.float32]:
    """uint8 images `[B, H, W, C]` as the network saw them in training; frames are taken as they are."""
    values = batch.astype(np.float32)
    if taken.frames:
        return values
    values /= np.float32(255)
    values -= np.array(taken.mean, np.float32)
    values /= np.array(taken.std, np.float32)
    return values


def _choose(kernels: str | None) -> str:
    known = (*native.available(), REFERENCE)
    asked = kernels or os.environ.get(VARIABLE)
    if not asked and known == (REFERENCE,):
        warnings.warn(f"The reference runs, slowly: there are no native kernels: {native.why_not()}", RuntimeWarning, 4)
    chosen = asked or known[0]
    if chosen not in known:
        why = f" No native ones: {native.why_not()}." if native.why_not() else ""
        raise ValueError(f"Unknown kernels {chosen!r}. Here are: {', '.join(known)}.{why}")
    return chosen


def _checked(images: ArrayLike, description: Description) -> NDArray[np.uint8]:
    """The images with channels last."""
    taken, batch = description.input, np.asarray(images)
    last, first = (taken.height, taken.width, taken.channels), (taken.channels, taken.height, taken.width)
    axes: dict[tuple[int, ...], tuple[int, ...]] = {first: (0, 2, 3, 1), last: (0, 1, 2, 3)}
    if taken.frames:
        axes = {(description.time_steps, *first): (0, 1, 3, 4, 2)}
    if batch.dtype != np.uint8 or batch.shape[1:] not in axes:
        wanted = " or ".join(f"[any, {', '.join(map(str, shape))}]" for shape in axes)
        raise ValueError(
            f"{shown(description.name)} takes uint8 values of shape {wanted}; got {batch.dtype} {list(batch.shape)}."
        )
    return batch.transpose(axes[batch.shape[1:]])
