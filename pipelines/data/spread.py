"""A few inputs of a data set, spread over all of it, as evaluation would see them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from pipelines.config import DataConfig
from pipelines.data import plan
from pipelines.data.beton import BetonReader
from pipelines.data.frames_loader import FramesEngine
from pipelines.data.loaders import Batch, Engine, Split
from pipelines.data.manifest import beton_path
from pipelines.data.torch_loader import TorchEngine
from pipelines.progress import Progress


def spread(folder: Path, split: Split, data: DataConfig, count: int, work: str) -> Iterator[Batch]:
    """`count` inputs of a split, or all that it has: uint8 images [B, 3, R, R] or frames [B, T, 2, H, W], labels [B].

    They are evenly spaced, for files may be sorted by class, and not augmented. `work` names the work in its progress.
    """
    path = beton_path(folder, split)
    reader = BetonReader(path)
    table = plan.new_table(len(reader))
    plan.fill_evaluation_plan(table, reader.sizes, data.crop_ratio)
    ids = np.unique(np.linspace(0, len(reader) - 1, min(count, len(reader))).astype(np.int64))
    make = FramesEngine if reader.layout.frames else TorchEngine
    engine: Engine = make(path, table, resolution=data.resolution, batch_size=data.batch_size, threads=1)
    try:
        labels = torch.from_numpy(reader.labels[ids])
        with Progress(len(ids), work, "input") as progress:
            for batch in engine.images(ids, data.resolution):
                yield batch, labels[progress.done : progress.done + len(batch)]
                progress.advance(len(batch))
    finally:
        engine.close()
