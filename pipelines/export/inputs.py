"""What an export is held against the model on: its validation split, or what is drawn where that is not here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from agmm.packed.description import Input
from pipelines.data.manifest import MANIFEST, ensure_verified
from pipelines.data.spread import spread
from pipelines.data.staging import data_folder
from pipelines.export.about import about
from pipelines.home import data_address
from pipelines.progress import Progress, Say
from pipelines.registry import Model

_BATCH = 16


@dataclass(frozen=True)
class Inputs:
    """What a model is compared on: uint8 batches, channels last, their labels where they have any, and their origin."""

    origin: str
    pairs: Iterator[tuple[NDArray[np.uint8], NDArray[np.int64] | None]]

    @property
    def batches(self) -> Iterator[NDArray[np.uint8]]:
        """Without the labels."""
        return (batch for batch, _ in self.pairs)


def inputs_of(model: Model, data_uri: str | None, count: int, say: Say) -> Inputs:
    """So many inputs of the model's validation split, evenly spaced. Raises UserError for data that are not its own."""
    data = model.card.data
    uri = data_uri or data.uri
    if data_uri is None and not (Path(data_address(uri, data.dataset)) / MANIFEST).is_file():
        say(f"{data.dataset} is not here: comparing on drawn inputs; --data names a built data set")
        return Inputs(f"{count} drawn", _drawn(about(model).input, model.card.model.time_steps, count))
    folder = data_folder(uri, data.dataset, say)
    ensure_verified(folder, expect_name=data.dataset, expect_classes=model.card.model.num_classes, say=say)
    batches = spread(folder, "val", data, count, "compare")
    return Inputs(f"validation of {folder}", ((_channels_last(images), labels.numpy()) for images, labels in batches))


def _channels_last(batch: torch.Tensor) -> NDArray[np.uint8]:
    return batch.movedim(-3, -1).numpy()


def _drawn(taken: Input, steps: int, count: int) -> Iterator[tuple[NDArray[np.uint8], None]]:
    """Noise of any brightness and contrast, or events that are rare."""
    generator = np.random.default_rng(0)
    shape = (*([steps] if taken.frames else []), taken.height, taken.width, taken.channels)
    with Progress(count, "compare", "input") as progress:
        for start in range(0, count, _BATCH):
            size = min(_BATCH, count - start)
            if taken.frames:
                yield generator.poisson(0.3, (size, *shape)).astype(np.uint8), None
            else:
                ends = generator.uniform(0, 256, (2, size, 1, 1, taken.channels))
                yield generator.uniform(ends.min(0), ends.max(0), (size, *shape)).astype(np.uint8), None
            progress.advance(size)
