"""The `.beton` file: FFCV's layout (version 2), written and read with NumPy alone.

    header | two field descriptors | a record per sample | padding | pages of image bytes | allocation table

A sample is a `label` and an `image` (JPEG file or raw RGB pixels) or `events` (frames): see `layout.py`. FFCV's own
writer fills pages in the order in which its processes finish and waits for ever when one of them dies; this one writes
in sample order, so the same samples give the same bytes. The header is written last: a file that was not finished
carries version 0 and is refused by any reader.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.data.layout import FIELD, JPG, Layout, Records, Shape, layout_of
from pipelines.errors import UserError

VERSION = 2
PAGE = 1 << 23
LARGEST_IMAGE = 1 << 31
LARGEST_SIDE = 2**16 - 1

HEADER = np.dtype(
    {
        "names": ["version", "num_fields", "page_size", "num_samples", "alloc_table_ptr"],
        "formats": ["<u2", "<u2", "<u4", "<u8", "<u8"],
        "offsets": [0, 2, 4, 8, 16],
        "itemsize": 24,
    }
)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])

_FIELDS = 2
_RECORDS_AT = HEADER.itemsize + _FIELDS * FIELD.itemsize

Pixels = npt.NDArray[np.uint8]


def _next_power_of_two(value: int) -> int:
    return 1 << max(value - 1, 0).bit_length()


class BetonWriter:
    """Appends samples in order. `finish` completes the file; without it no reader accepts the file.

    OSError passes through: the caller knows what to say about a full disk.
    """

    def __init__(self, path: Path, count: int, frames: Shape | None = None) -> None:
        """Start a file of at most `count` images or, with a shape (T, 2, H, W), of event frames."""
        self._layout = Layout(frames)
        self._records = np.zeros(count, self._layout.sample)
        self._table = np.zeros(count, ALLOCATION)
        self._written = 0
        self._page_size = PAGE
        start = _RECORDS_AT + self._records.nbytes
        self._end = -(-start // PAGE) * PAGE
        self._file = path.open("wb")

    def add(self, label: int, mode: int, height: int, width: int, data: bytes | Pixels) -> None:
        """Append one sample: a JPEG file (`mode` JPG), RGB pixels [height, width, 3] (RAW), or frames (FRAMES)."""
        size = len(data) if isinstance(data, bytes) else data.nbytes
        assert 0 < size <= LARGEST_IMAGE
        assert max(height, width) <= LARGEST_SIDE
        pointer = self._place(size)
        self._file.seek(pointer)
        self._file.write(data if isinstance(data, bytes) else np.ascontiguousarray(data).data)
        self._records[self._written] = self._layout.record(label, mode, height, width, pointer)
        self._table[self._written] = (self._written, pointer, size)
        self._end = pointer + size
        self._written += 1

    def _place(self, size: int) -> int:
        """Where the next image goes: none may cross a page, which is what FFCV's process cache reads."""
        page = max(PAGE, _next_power_of_two(size))
        # A larger page still holds what was placed by a smaller one, because both are powers of two.
        self._page_size = max(self._page_size, page)
        fits = self._end // page == (self._end + size - 1) // page
        return self._end if fits else -(-self._end // page) * page

    def finish(self) -> None:
        """Write records, allocation table and, after they are on disk, the header; then close."""
        # Samples that were left out leave their place empty; images stay where they are.
        records, table = self._records[: self._written], self._table[: self._written]
        table_at = -(-self._end // PAGE) * PAGE
        self._file.seek(table_at)
        self._file.write(table.tobytes())
        self._file.seek(HEADER.itemsize)
        self._file.write(self._layout.fields.tobytes() + records.tobytes())
        self._sync()
        self._file.seek(0)
        header = (VERSION, _FIELDS, self._page_size, self._written, table_at)
        self._file.write(np.array(header, HEADER).tobytes())
        self._sync()
        self._file.close()

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Give the file up as it is."""
        # On a full disk the buffer cannot be flushed either; the caller already has that error.
        with contextlib.suppress(OSError):
            self._file.close()


class BetonReader:
    """A memory map over a finished file. Safe to share between threads; pickles as its path."""

    def __init__(self, path: Path) -> None:
        """Raises UserError when the file is not there, not finished, cut short, or not of this layout."""
        self.path = Path(path)
        header, self.layout = _read_header(self.path)
        self.records = _read(self.path, self.layout.sample, _RECORDS_AT, int(header["num_samples"]))
        self.allocations = _read(self.path, ALLOCATION, int(header["alloc_table_ptr"]), len(self.records))
        _check_allocations(self.path, self.layout, self.records, self.allocations)
        self._map: Pixels = np.memmap(self.path, np.uint8, "r")

    def __len__(self) -> int:
        return len(self.records)

    def __reduce__(self) -> tuple[Any, ...]:
        return BetonReader, (self.path,)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class of every sample, [N]."""
        return np.ascontiguousarray(self.records["label"])

    @property
    def sizes(self) -> npt.NDArray[np.int32]:
        """(height, width) of every stored sample, [N, 2]."""
        _, height, width, _ = self.layout.columns(self.records)
        return np.stack([height, width], axis=1).astype(np.int32)

    def size_of(self, index: int) -> tuple[int, int]:
        """(height, width) of one stored image."""
        image = self.records[index]["image"]
        return int(image["height"]), int(image["width"])

    def stored(self, index: int) -> Pixels:
        """The stored bytes of one sample, a view of the map: a JPEG file, pixels, or frames."""
        start, size = int(self.allocations["ptr"][index]), int(self.allocations["size"][index])
        return self._map[start : start + size]

    def is_jpeg(self, index: int) -> bool:
        """Whether `stored` is a JPEG file rather than pixels."""
        return int(self.records["image"]["mode"][index]) == JPG

    def content(self) -> Iterator[bytes | memoryview]:
        """What a content digest covers: of each sample in order, `sample_head`, then the bytes."""
        mode, height, width, _ = self.layout.columns(self.records)
        columns = zip(self.labels, mode, height, width, self.allocations["size"], strict=True)
        for index, values in enumerate(columns):
            yield sample_head(*(int(value) for value in values))
            yield self.stored(index).data


_HEAD = np.dtype([("label", "<i8"), ("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("size", "<u8")])


def sample_head(label: int, mode: int, height: int, width: int, size: int) -> bytes:
    """What precedes an image's bytes in a content digest; the size keeps two samples from running into one."""
    return np.array((label, mode, width, height, size), _HEAD).tobytes()


def _read(path: Path, dtype: np.dtype[Any], offset: int, count: int) -> npt.NDArray[Any]:
    array = np.fromfile(path, dtype, count=count, offset=offset)
    if len(array) != count:
        raise UserError(f"{path} is cut short. Build or copy the data set again.")
    return array


def _read_header(path: Path) -> tuple[Any, Layout]:
    try:
        size = path.stat().st_size
        header = np.fromfile(path, HEADER, count=1)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}. Build the data set, or copy it whole.") from error
    if len(header) == 0 or header[0]["version"] == 0:
        raise UserError(f"{path} was not finished. Build or copy the data set again.")
    if header[0]["version"] != VERSION or header[0]["num_fields"] != _FIELDS:
        raise UserError(f"{path} is not a .beton of version {VERSION} with two fields. Build it again.")
    if size < _RECORDS_AT:
        raise UserError(f"{path} is cut short. Build or copy the data set again.")
    layout = layout_of(np.fromfile(path, FIELD, count=_FIELDS, offset=HEADER.itemsize))
    if layout is None:
        raise UserError(
            f"{path} has other fields than an image or events, and a label. Build it again with `agmm data build`."
        )
    needed = _RECORDS_AT + int(header[0]["num_samples"]) * layout.sample.itemsize
    table_end = int(header[0]["alloc_table_ptr"]) + int(header[0]["num_samples"]) * ALLOCATION.itemsize
    if size < max(needed, table_end):
        raise UserError(f"{path} is cut short: {size} bytes of {max(needed, table_end)}. Build or copy it again.")
    return header[0], layout


def _check_allocations(path: Path, layout: Layout, records: Records, allocations: Records) -> None:
    """Every record points to its own allocation inside the file, which has the size that the record claims."""
    size = allocations["size"].astype(np.int64)
    *_, pointers = layout.columns(records)
    sound = (
        np.array_equal(allocations["sample_id"], np.arange(len(records)))
        and np.array_equal(pointers, allocations["ptr"])
        and bool(np.all(allocations["ptr"].astype(np.int64) + size <= path.stat().st_size))
        and layout.sound(records, size)
    )
    if not sound:
        raise UserError(f"{path} contradicts itself (records and allocations differ). Build or copy it again.")
