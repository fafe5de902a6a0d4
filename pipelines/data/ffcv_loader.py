"""Images through FFCV: compiled, threaded decoding that obeys the plan.

FFCV's own crops draw from an unseeded generator, its epochs drop the pipeline's exceptions and its Compiler changes
torch's number of threads; all three are put right here and in ffcv_decoder.py. These two are the only modules that
import FFCV, and only `loaders.py` imports this one, after `why_absent` has said that it can.
"""

# Neither FFCV nor numba's compiled dialect is typed.
# mypy: disable-error-code="import-untyped, import-not-found, misc, attr-defined, call-arg, has-type, untyped-decorator"

from __future__ import annotations

import itertools
import queue
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from ffcv.loader import Loader, OrderOption
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.memory_managers.os_cache import OSCacheManager
from ffcv.pipeline.compiler import Compiler
from numba import types

from pipelines.data.beton import BetonReader
from pipelines.data.ffcv_decoder import PlannedDecoder
from pipelines.data.images import BrokenImage, prepare, strict_decoding
from pipelines.data.layout import JPG
from pipelines.data.plan import Ids, Table
from pipelines.data.scaling import MOST
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

    def __init__(
        self, path: Path, table: Table, *, resolution: int, batch_size: int, threads: int, most: int = MOST
    ) -> None:
        self._reader = BetonReader(path)
        jpeg = self._reader.records["image"]["mode"] == JPG
        pixels = self._reader.sizes.astype(np.int64).prod(axis=1)
        self._decoder = PlannedDecoder(table, resolution, int(pixels[jpeg].max(initial=0)), most)
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
