"""The same images through torch's DataLoader, NumPy and OpenCV: slower, plainer, and what FFCV is tested against."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pipelines.data.beton import BetonReader, Pixels
from pipelines.data.plan import Ids, Row, Table
from pipelines.data.scaling import MOST, reduced_side, reduction, shrink
from pipelines.errors import ServiceError

# A batch to make: sample ids [B], their rows of the plan [B, 5] and the images' resolution.
_Order = tuple[Ids, Table, int]

# The EXIF orientation is ignored, as by FFCV's decoder.
_FLAGS = {
    times: kind | cv2.IMREAD_IGNORE_ORIENTATION
    for times, kind in (
        (1, cv2.IMREAD_COLOR),
        (2, cv2.IMREAD_REDUCED_COLOR_2),
        (4, cv2.IMREAD_REDUCED_COLOR_4),
        (8, cv2.IMREAD_REDUCED_COLOR_8),
    )
}


def planned(reader: BetonReader, index: int, row: Row, resolution: int, most: int = MOST) -> Pixels:
    """One stored image as a row of the plan wants it, decoded up to `most` times smaller. Raises ServiceError."""
    top, left, height, width, flip = (int(value) for value in row)
    times = reduction(height, width, resolution, most) if reader.is_jpeg(index) else 1
    if times == 1:
        return cut(decode(reader, index), row, resolution)
    box = top / times, left / times, height / times, width / times
    out = shrink(decode(reader, index, times), *box, resolution)
    return out[:, ::-1] if flip else out


def decode(reader: BetonReader, index: int, times: int = 1) -> Pixels:
    """One stored image as RGB [height, width, 3]; a JPEG one so many times smaller.

    Raises ServiceError when it does not decode.
    """
    height, width = reader.size_of(index)
    stored = reader.stored(index)
    if not reader.is_jpeg(index):
        return stored.reshape(height, width, 3)
    image = cv2.imdecode(stored, _FLAGS[times])
    if image is None or image.shape != (reduced_side(height, times), reduced_side(width, times), 3):
        raise ServiceError(
            f"Image {index} of {reader.path} no longer decodes. The file was whole when it was built: check the disk, "
            f"and run `agmm data verify {reader.path.parent}`."
        )
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def cut(image: Pixels, row: Row, resolution: int) -> Pixels:
    """What a row of the plan makes of an image: a box, at [resolution, resolution, 3], mirrored or not.

    A box of the output's size is copied, with black outside the image; any other is resized by area, as FFCV does.
    """
    top, left, height, width, flip = (int(value) for value in row)
    if height == width == resolution:
        out = np.zeros((resolution, resolution, 3), np.uint8)
        rows = slice(max(top, 0), min(top + height, image.shape[0]))
        columns = slice(max(left, 0), min(left + width, image.shape[1]))
        out[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = image[rows, columns]
    else:
        box = image[top : top + height, left : left + width]
        out = np.asarray(cv2.resize(box, (resolution, resolution), interpolation=cv2.INTER_AREA), np.uint8)
    return out[:, ::-1] if flip else out


class _Batches(Dataset[torch.Tensor]):
    """Makes whole batches. Each request carries its rows of the plan, so no worker can hold an old one."""

    def __init__(self, reader: BetonReader, most: int) -> None:
        self._reader, self._most = reader, most

    def __getitem__(self, order: _Order) -> torch.Tensor:
        ids, rows, resolution = order
        out = np.empty((len(ids), resolution, resolution, 3), np.uint8)
        for slot, (index, row) in enumerate(zip(ids.tolist(), rows, strict=True)):
            out[slot] = planned(self._reader, index, row, resolution, self._most)
        return torch.from_numpy(out)


class _Requests(Sampler[_Order]):
    """The batches of the epoch at hand."""

    def __init__(self, table: Table, batch_size: int, resolution: int) -> None:
        self._table, self._batch_size, self.resolution = table, batch_size, resolution
        self.ids: Ids = np.zeros(0, np.int64)

    def __iter__(self) -> Iterator[_Order]:
        ids = self.ids
        for start in range(0, len(ids), self._batch_size):
            batch = ids[start : start + self._batch_size]
            yield batch, self._table[batch], self.resolution


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)


class TorchEngine:
    """Batches of one split through torch's DataLoader; `threads` above one are processes that stay between epochs.

    JPEG images are decoded up to `most` times smaller.
    """

    def __init__(
        self, path: Path, table: Table, *, resolution: int, batch_size: int, threads: int, most: int = MOST
    ) -> None:
        self._requests = _Requests(table, batch_size, resolution)
        workers = 0 if threads == 1 else min(threads, os.cpu_count() or 1)
        options: dict[str, Any] = {}
        if workers:
            # Never a bare fork: this process may hold threads (torch's, Ray's), whose locks a fork would freeze.
            methods = multiprocessing.get_all_start_methods()
            options["multiprocessing_context"] = "forkserver" if "forkserver" in methods else "spawn"
            options |= {"persistent_workers": True, "worker_init_fn": _start_worker}
        self._loader: DataLoader[torch.Tensor] | None = DataLoader(
            _Batches(BetonReader(path), most),
            batch_size=None,
            sampler=self._requests,
            num_workers=workers,
            collate_fn=_as_it_is,
            # One of its own: DataLoader draws a seed each epoch, and the global generator belongs to the training.
            generator=torch.Generator(),
            **options,
        )

    def images(self, ids: Ids, resolution: int) -> Generator[torch.Tensor, None, None]:
        """Images uint8 [B, 3, R, R] of `ids` in batches, each in memory of its own. Raises ServiceError."""
        assert self._loader is not None, "closed"
        self._requests.ids, self._requests.resolution = ids, resolution
        pinned = torch.cuda.is_available()
        batches = iter(self._loader)
        while True:
            try:
                batch = next(batches, None)
            # What DataLoader raises when a worker process is gone.
            except RuntimeError as error:
                raise ServiceError(f"The image pipeline stopped: {error}") from error
            if batch is None:
                return
            yield (batch.pin_memory() if pinned else batch).permute(0, 3, 1, 2)

    def close(self) -> None:
        """End the worker processes."""
        self._loader = None
