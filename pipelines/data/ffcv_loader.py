"""Images through FFCV: compiled, threaded decoding that obeys the plan.

FFCV's own crops draw from an unseeded generator, its epochs drop the pipeline's exceptions and its Compiler changes
torch's number of threads; all three are put right here. This is the only module that imports FFCV, and only
`loaders.py` imports this one, after `why_absent` has said that it can.
"""

# Neither FFCV nor numba's compiled dialect is typed.
# mypy: disable-error-code="import-untyped, import-not-found, misc, attr-defined, call-arg, has-type, untyped-decorator"

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.libffcv import ctypes_imdecode, ctypes_resize
from ffcv.loader import Loader, OrderOption
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.memory_managers.os_cache import OSCacheManager
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from pipelines.data.beton import BetonReader
from pipelines.data.images import BrokenImage, prepare, strict_decoding
from pipelines.data.layout import JPG
from pipelines.data.plan import COLUMNS, Ids, Table
from pipelines.errors import ServiceError

_POLL_S = 0.5
_CLOSE_POLL_S = 0.02


def _set_numba_threads(cls: type[Compiler], count: int) -> None:
    cls.num_threads = count
    numba.set_num_threads(count)


# FFCV's version also calls torch.set_num_threads: two loader threads would leave two threads to the training step.
Compiler.set_num_threads = classmethod(_set_numba_threads)


_READ_ONLY = types.Array(types.uint8, 1, "C", readonly=True)


def _state_type(_: OSCacheManager) -> Any:
    return types.Tuple([_READ_ONLY, types.uint64[::1], types.uint64[::1]])


def _compile_reader(manager: OSCacheManager) -> Any:
    def read(address: Any, state: Any) -> Any:
        size = state[2][np.searchsorted(state[1], address)]
        return state[0][address : address + size]

    return Compiler.compile(read, _READ_ONLY(types.uint64, manager.state_type))


# FFCV's version makes numba's one and only type "array of bytes" read-only in place. Whatever was compiled for that
# type before is then no longer found: a second Loader in a process fails with a KeyError, in the pipeline or at exit.
OSCacheManager.state_type = property(_state_type)
OSCacheManager.compile_reader = _compile_reader


@intrinsic
def _as_pointer(_context: Any, address: Any) -> Any:
    """An address as a pointer. A closed-over array would be frozen into the compiled code; memory behind one is not."""

    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@numba.njit(nogil=True)
def _decode_jpeg(data: Any, height: int, width: int, out: Any) -> Any:
    """libjpeg-turbo's whole image, neither cropped, scaled nor mirrored; 0, or -1 for an error or a warning."""
    h, w = np.uint32(height), np.uint32(width)
    return ctypes_imdecode(data.ctypes.data, data.size, h, w, out.ctypes.data, h, w, 0, 0, 1, 1, False, False)


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
    `codes[i]` is libjpeg-turbo's answer of the last time sample i was decoded: 0, or -1 for an error or a warning.
    A thread has one scratch image, where FFCV's own decoders have one for each image of each batch in flight.
    """

    def __init__(self, table: Table, resolution: int, biggest: int) -> None:
        """`biggest` is the most pixels that a JPEG image has."""
        super().__init__()
        assert table.dtype == np.int32
        assert table.flags.c_contiguous
        assert table.shape[1] == COLUMNS
        self.table, self.resolution = table, resolution
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
        threaded = Compiler.num_threads > 1

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
                if field["mode"] == JPG:
                    buffer = scratch[numba.get_thread_id() if threaded else 0]
                    codes[sample] = _decode_jpeg(data, height, width, buffer)
                    image = buffer[: 3 * height * width].reshape(height, width, 3)
                else:
                    image = data.reshape(height, width, 3)
                top, left, box_height, box_width, flip = table[sample]
                out = destination[slot].reshape(-1)[: size * size * 3].reshape(size, size, 3)
                if box_height == size and box_width == size:
                    _copy_box(image, top, left, out)
                else:
                    _resize(image, top, left, box_height, box_width, out)
                if flip:
                    _mirror(out)
            return destination[: len(batch_indices)]

        decode.is_parallel = True
        return decode


class _Epoch(EpochIterator):
    """FFCV's pipeline thread, with its exception kept and an end that can be had early."""

    failure: BaseException | None = None

    def run(self) -> None:
        # Stops asking for batches once closed: emptying the queue would otherwise only make room for the next one.
        self.iter_ixes = itertools.takewhile(lambda _: not self.terminate_event.is_set(), self.iter_ixes)
        try:
            super().run()
        except BaseException as error:  # noqa: BLE001  (`take` raises it in the consumer's thread)
            # An exception would end the thread in silence, and the consumer would wait for ever.
            self.failure = error

    def take(self) -> npt.NDArray[np.uint8] | None:
        """The next batch, None at the end. Raises ServiceError when the pipeline died."""
        while True:
            alive = self.is_alive()
            try:
                entry = self.output_queue.get(timeout=_POLL_S if alive else 0)
            except queue.Empty:
                # Asked before the queue was: a thread that ended in between has left its last batch there.
                if not alive:
                    raise ServiceError(f"The image pipeline stopped: {self.failure!r}.") from self.failure
                continue
            return None if entry is None else entry[1][0]

    def finish(self) -> None:
        """End the thread and let its buffers go, whatever it is doing."""
        self.close()
        while self.is_alive():
            try:
                self.output_queue.get(timeout=_CLOSE_POLL_S)
            except queue.Empty:
                self.join(_CLOSE_POLL_S)


class FfcvEngine:
    """Batches of one split through FFCV; compiles once, at the first batch."""

    def __init__(self, path: Path, table: Table, *, resolution: int, batch_size: int, threads: int) -> None:
        self._reader = BetonReader(path)
        jpeg = self._reader.records["image"]["mode"] == JPG
        pixels = self._reader.sizes.astype(np.int64).prod(axis=1)
        self._decoder = PlannedDecoder(table, resolution, int(pixels[jpeg].max(initial=0)))
        self._harmless: set[int] = set()
        self._loader = Loader(
            str(path),
            batch_size=batch_size,
            num_workers=min(threads, numba.config.NUMBA_NUM_THREADS),
            order=OrderOption.SEQUENTIAL,
            # Without a seed FFCV draws one from NumPy's global generator.
            seed=0,
            os_cache=True,
            drop_last=False,
            # Labels come from the records, which are in memory already.
            pipelines={"image": [self._decoder], "label": None},
        )

    def images(self, ids: Ids, resolution: int) -> Generator[torch.Tensor, None, None]:
        """Images uint8 [B, 3, R, R] of `ids` in batches, each in memory of its own. Raises ServiceError."""
        self._decoder.size[0] = resolution
        # Loader.__iter__ would cut the ids to a length that is frozen when the loader is made.
        epoch = _Epoch(self._loader, ids)
        try:
            for start in itertools.count(step=self._loader.batch_size):
                batch = epoch.take()
                if batch is None:
                    return
                self._check(ids[start : start + len(batch)])
                yield _own(batch, resolution).permute(0, 3, 1, 2)
        finally:
            epoch.finish()

    def _check(self, ids: Ids) -> None:
        """libjpeg-turbo gives one code for an error and for a remark; Pillow tells them apart, once a sample."""
        for index in ids[self._decoder.codes[ids] != 0].tolist():
            if index not in self._harmless:
                self._decode_again(index)
                self._harmless.add(index)

    def _decode_again(self, index: int) -> None:
        try:
            with strict_decoding():
                prepare(self._reader.stored(index).tobytes())
        except BrokenImage as error:
            raise ServiceError(
                f"Image {index} of {self._reader.path} no longer decodes: {error}. The file was whole when it was "
                f"built: check the disk, and run `agmm data verify {self._reader.path.parent}`."
            ) from error

    def close(self) -> None:
        """Nothing outlives an epoch."""


def _own(batch: npt.NDArray[np.uint8], resolution: int) -> torch.Tensor:
    """A copy [B, r, r, 3]: FFCV writes the next batches into the same ring, and a transfer may still be reading."""
    shape = (len(batch), resolution, resolution, 3)
    own = torch.empty(shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    flat = own.flatten(1).numpy()
    # NumPy's copy: torch's would wake its threads for it, and they would wait for processors that decode.
    np.copyto(flat, batch.reshape(len(batch), -1)[:, : flat.shape[1]])
    return own
