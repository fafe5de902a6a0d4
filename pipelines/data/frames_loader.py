"""Event frames from a memory map, moved and mirrored as the plan says.

One engine for every `data.loader`: raw arrays need no decoder, and one core of NumPy moves 20,000 samples a second,
more than networks take (LOG.md). FFCV copies faster, but would need a compiled operation of our own to move and mirror.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipelines.config import AugmentConfig, DataConfig, ModelConfig
from pipelines.data.beton import BetonReader
from pipelines.data.events import Frames
from pipelines.data.layout import Shape
from pipelines.data.plan import FLIP, LEFT, TOP, Ids, Table
from pipelines.errors import UserError

# What `data.augment` may say of event frames; everything else is for images and must keep its default.
_OF_IMAGES = ("crop_ratio", "progressive", "mean", "std")
_FOR_FRAMES = frozenset({"crop", "padding", "roll", "flip"})


def cut_frames(frames: Frames, row: npt.NDArray[np.int32], *, wrap: bool, out: Frames) -> None:
    """What a row of the plan makes of frames [T, 2, H, W]: the same for all T, written to `out` of that shape.

    Place (0, 0) of `out` is (top, left) of `frames`; what lies outside them is 0 or, with `wrap`, their other side.
    """
    top, left = int(row[TOP]), int(row[LEFT])
    out[...] = np.roll(frames, (-top, -left), axis=(2, 3)) if top or left else frames
    if not wrap:
        out[:, :, _outside(top, out.shape[2])] = 0
        out[:, :, :, _outside(left, out.shape[3])] = 0
    if row[FLIP]:
        out[...] = out[..., ::-1]


def _outside(offset: int, side: int) -> slice:
    """Where a window moved by `offset` sees nothing."""
    return slice(max(side - offset, 0), side) if offset > 0 else slice(0, -offset)


def check_kind(frames: Shape | None, data: DataConfig, model: ModelConfig | None) -> None:
    """Raise UserError where the configuration is for images and the data of events, or the other way round.

    frames: the (T, 2, H, W) of event data, None for images. model: the network that is to take it; None: not asked.
    """
    channels = 3 if frames is None else frames[1]
    if model is not None and model.in_chans != channels:
        what = "RGB images" if frames is None else "event frames of 2 polarities"
        raise UserError(
            f"model.in_chans={model.in_chans} takes images or frames of so many channels; {data.dataset} has {what}. "
            f"Set model.in_chans={channels}."
        )
    if frames is not None:
        _check_frames(frames, data, model)
    elif data.augment.crop == "roll":
        raise UserError("data.augment.crop=roll is for event frames; for images use none, pad or random_resized.")


def _check_frames(frames: Shape, data: DataConfig, model: ModelConfig | None) -> None:
    steps, size = frames[0], frames[2]
    if model is not None and steps != model.time_steps:
        raise UserError(
            f"{data.dataset} has frames of {steps} time steps, the network {model.time_steps}. Set "
            f"model.time_steps={steps}, or build the data again with --frames {model.time_steps}."
        )
    if data.resolution != size:
        raise UserError(f"data.resolution={data.resolution}, but the frames are {size} x {size}. Set it to {size}.")
    if odd := _for_images(data):
        raise UserError(
            f"{', '.join(odd)}: for images; {data.dataset} has event frames. Allowed: data.augment.crop=none, pad or "
            "roll, and flip. Take the others out."
        )


def _for_images(data: DataConfig) -> list[str]:
    """Options that frames do not have, of those that are not at their defaults."""
    plain = AugmentConfig()
    names = [name for name in AugmentConfig.model_fields if name not in _FOR_FRAMES]
    odd = [f"data.augment.{name}" for name in names if getattr(data.augment, name) != getattr(plain, name)]
    odd += ["data.augment.crop=random_resized"] if data.augment.crop == "random_resized" else []
    fields = DataConfig.model_fields
    return odd + [f"data.{name}" for name in _OF_IMAGES if getattr(data, name) != fields[name].default]


class FramesEngine:
    """Batches of one split; `threads` batches are made ahead, each by one thread."""

    def __init__(
        self, path: Path, table: Table, *, resolution: int, batch_size: int, threads: int, wrap: bool = False
    ) -> None:
        self._reader, self._table = BetonReader(path), table
        assert self._reader.layout.frames is not None
        self._shape = self._reader.layout.frames
        assert self._shape[2:] == (resolution, resolution)
        self._batch_size, self._threads, self._wrap = batch_size, threads, wrap

    def images(self, ids: Ids, resolution: int) -> Generator[torch.Tensor, None, None]:
        """Frames uint8 [B, T, 2, H, W] of `ids` in batches, each in memory of its own."""
        assert self._shape[2:] == (resolution, resolution)
        pending: deque[Future[torch.Tensor]] = deque()
        with ThreadPoolExecutor(self._threads) as pool:
            try:
                for start in range(0, len(ids), self._batch_size):
                    pending.append(pool.submit(self._batch, ids[start : start + self._batch_size]))
                    if len(pending) > self._threads:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _batch(self, ids: Ids) -> torch.Tensor:
        batch = torch.empty((len(ids), *self._shape), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        for out, index in zip(batch.numpy(), ids.tolist(), strict=True):
            stored = self._reader.stored(index)
            cut_frames(stored.reshape(self._shape), self._table[index], wrap=self._wrap, out=out)
        return batch

    def close(self) -> None:
        """Nothing outlives an epoch."""
