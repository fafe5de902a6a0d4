"""The plan's crops as one of FFCV's decoders, in numba's dialect around our own compiled decoder of boxes."""

# Neither FFCV nor numba's compiled dialect is typed.
# mypy: disable-error-code="import-untyped, import-not-found, misc, attr-defined, call-arg, has-type, untyped-decorator"

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numba
import numpy as np
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.libffcv import ctypes_resize
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from pipelines.data.layout import JPG
from pipelines.data.native_pixels import library
from pipelines.data.plan import COLUMNS, Table
from pipelines.data.scaling import reduced_side, reduction

_native_decode, _native_shrink = library().agmm_decode_box, library().agmm_shrink
_reduction, _reduced_side = numba.njit(reduction), numba.njit(reduced_side)


@intrinsic
def _as_pointer(_context: Any, address: Any) -> Any:
    """An address as a pointer. A closed-over array would be frozen into the compiled code; memory behind one is not."""

    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@numba.njit(nogil=True)
def _span(start: int, length: int, times: int, side: int) -> tuple[int, int]:
    """First and last + 1 of the pixels that a box touches along an axis of a reduced image of `side` pixels."""
    first = min(max(start // times, 0), side)
    return first, max(min(_reduced_side(start + length, times), side), first)


@numba.njit(nogil=True)
def _cut_jpeg(data: Any, size: Any, box: Any, most: int, scratch: Any, out: Any) -> Any:
    """Decode what a box needs and give it the output's size; 0, or 1 for an error or a warning."""
    top, left, height, width = box
    times = _reduction(height, width, out.shape[0], most)
    first, last = _span(top, height, times, _reduced_side(size[0], times))
    begin, end = _span(left, width, times, _reduced_side(size[1], times))
    code = 0
    if last > first and end > begin:
        at, to = data.ctypes.data, scratch.ctypes.data
        code = _native_decode(at, data.size, size[0], size[1], times, first, last, begin, end, to)
    image = scratch[: 3 * (last - first) * (end - begin)].reshape(last - first, end - begin, 3)
    if (height != out.shape[0] or width != out.shape[0]) and min(height, width) >= out.shape[0]:
        y, x = top / times - first, left / times - begin
        shape, target = image.shape, out.ctypes.data
        _native_shrink(image.ctypes.data, shape[0], shape[1], y, x, height / times, width / times, out.shape[0], target)
    else:
        _cut(image, (top - first, left - begin, height, width), out)
    return code


@numba.njit(nogil=True)
def _cut(image: Any, box: Any, out: Any) -> None:
    """A box of the output's own size is copied, any other is resized."""
    top, left, height, width = box
    if height == out.shape[0] and width == out.shape[0]:
        _copy_box(image, top, left, out)
    else:
        _resize(image, top, left, height, width, out)


@numba.njit(nogil=True)
def _resize(image: Any, top: int, left: int, height: int, width: int, out: Any) -> None:
    """OpenCV's resize by area of a box inside the image."""
    rows, columns = image.shape[0], image.shape[1]
    ends = (top, top + height, left, left + width)
    ctypes_resize(0, image.ctypes.data, rows, columns, *ends, out.ctypes.data, out.shape[0], out.shape[1])


@numba.njit(nogil=True)
def _copy_box(image: Any, top: int, left: int, out: Any) -> None:
    """Copy a box of the output's own size; what lies outside the image is black."""
    height, width = image.shape[0], image.shape[1]
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            inside = 0 <= top + y < height and 0 <= left + x < width
            for c in range(3):
                out[y, x, c] = image[top + y, left + x, c] if inside else 0


@numba.njit(nogil=True)
def _mirror(out: Any) -> None:
    """Swap left and right in place: assigning a reversed view of itself would read what it has just written."""
    last = out.shape[1] - 1
    for y in range(out.shape[0]):
        for x in range(out.shape[1] // 2):
            for c in range(3):
                out[y, x, c], out[y, last - x, c] = out[y, last - x, c], out[y, x, c]


class PlannedDecoder(SimpleRGBImageDecoder):
    """Decodes sample i to [R, R, 3] as row i of `table` says; refill the table in place, nothing is compiled again.

    So with the resolution: set `size[0]` to r <= R, and an image [r, r, 3] is the first bytes of its place.
    `codes[i]` is libjpeg-turbo's answer of the last time sample i was decoded: 0, or 1 for an error or a warning.
    A thread has one scratch image, where FFCV's own decoders have one for each image of each batch in flight.
    """

    def __init__(self, table: Table, resolution: int, biggest: int, most: int) -> None:
        """`biggest` is the most pixels that a JPEG image has; it is decoded up to `most` times smaller."""
        super().__init__()
        assert table.dtype == np.int32
        assert table.flags.c_contiguous
        assert table.shape[1] == COLUMNS
        self.table, self.resolution, self.most = table, resolution, most
        self.size = np.full(1, resolution, np.int64)
        self.codes = np.zeros(len(table), np.int8)
        self.scratch = np.empty((numba.config.NUMBA_NUM_THREADS, max(3 * biggest, 1)), np.uint8)

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, AllocationQuery]:
        """Images [R, R, 3], from compiled code."""
        shape, dtype = (self.resolution, self.resolution, 3), np.dtype("u1")
        return replace(previous_state, jit_mode=True, shape=shape, dtype=dtype), AllocationQuery(shape, dtype)

    def generate_code(self) -> Callable[..., Any]:
        """The function that FFCV compiles; all that it closes over are numbers and compiled functions."""
        read, iterate = self.memory_read, Compiler.get_iterator()
        table_at, codes_at, scratch_at, size_at = (
            np.uint64(array.ctypes.data) for array in (self.table, self.codes, self.scratch, self.size)
        )
        count, scratch_shape = len(self.table), self.scratch.shape
        threaded, most = Compiler.num_threads > 1, self.most

        def decode(batch_indices: Any, destination: Any, metadata: Any, storage_state: Any) -> Any:
            table = carray(_as_pointer(table_at), (count, 5), np.int32)
            codes = carray(_as_pointer(codes_at), (count,), np.int8)
            scratch = carray(_as_pointer(scratch_at), scratch_shape, np.uint8)
            size = carray(_as_pointer(size_at), (1,), np.int64)[0]
            for slot in iterate(len(batch_indices)):
                sample = batch_indices[slot]
                field = metadata[sample]
                data = read(field["data_ptr"], storage_state)
                height, width = np.int64(field["height"]), np.int64(field["width"])
                top, left, box_height, box_width, flip = table[sample].astype(np.int64)
                box = (top, left, box_height, box_width)
                out = destination[slot].reshape(-1)[: size * size * 3].reshape(size, size, 3)
                if field["mode"] == JPG:
                    buffer = scratch[numba.get_thread_id() if threaded else 0]
                    codes[sample] = _cut_jpeg(data, (height, width), box, most, buffer, out)
                else:
                    _cut(data.reshape(height, width, 3), box, out)
                if flip:
                    _mirror(out)
            return destination[: len(batch_indices)]

        decode.is_parallel = True
        return decode
