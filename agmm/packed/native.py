"""The compiled kernels: packed networks and single binary convolutions, on AVX-512, AVX2 or any 64-bit processor.

Installing the package compiles `agmm/packed/native` where there is a compiler; without one, `available()` is empty,
`why_not()` says why, and the reference runs. Everything is checked here: the C++ side trusts sizes and pointers.

Axes: T time steps, B batch, H, W, C channels, I input and O output channels, K classes. Channels come last.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agmm.library import CompiledLibrary
from agmm.packed.abi import ABI, bind, fill
from agmm.packed.description import POOLED, Description
from agmm.packed.files import shown
from agmm.packed.reference import Counts

LIBRARY_VARIABLE = "AGMM_KERNELS_LIBRARY"
_MOST_THREADS, _MOST_SIDE = 256, 1 << 14
_TOO_LARGE = 2  # a status, as in api.h


_kernels = CompiledLibrary(Path(__file__).parent, bind, prefix="agmm_", abi=ABI, variable=LIBRARY_VARIABLE)
available, why_not, path = _kernels.available, _kernels.why_not, _kernels.path


class NativeNetwork:
    """A packed network in the compiled kernels, with memory and threads of its own.

    It holds copies of all weights. Several Python threads may call it: they take turns. In a child process made by
    fork it computes on one thread.

    Args:
        description: what the network is.
        tensors: by the names and of the shapes of `description.shapes()`.
        threads: share a batch's images, or an image's rows where there are fewer images.
        path: one of `available()`; default AGMM_KERNELS of the environment, or the best.

    Raises:
        ValueError: for a path or number of threads that is not possible, or tensors that are not the description's.
        RuntimeError: where there are no kernels.
        MemoryError: where there is not enough memory; also from running.

    """

    def __init__(
        self,
        description: Description,
        tensors: Mapping[str, NDArray[Any]],
        *,
        threads: int = 1,
        path: str | None = None,
    ) -> None:
        self.description, self.threads, self.path = description, _checked_threads(threads), _kernels.path(path)
        self._lib, self._lock, handle = _kernels.loaded(), threading.Lock(), ctypes.c_void_p()
        struct, kept = fill(description, tensors, self.threads, self.path)
        _raise_for(self._lib.agmm_create(ctypes.byref(struct), ctypes.byref(handle)))
        del kept  # arrays that the struct points into
        self._handle = handle
        self._finalizer = weakref.finalize(self, self._lib.agmm_free, handle)

    def run(self, images: ArrayLike) -> NDArray[np.float32]:
        """Mean logits over T, float32 `[B, K]`, of normalised images `[B, H, W, C]` or frames `[B, T, H, W, C]`.

        Any H and W; memory is kept for the largest so far. Raises ValueError for another shape, and for values that are
        not finite.
        """
        return self._run(images, None)

    def run_counted(self, images: ArrayLike) -> tuple[NDArray[np.float32], Counts]:
        """As `run`, and what the inference did."""
        counts_N3 = np.zeros((len(self.description.blocks), 3), np.int64)
        logits = self._run(images, counts_N3.ctypes.data)
        neurons, spikes, arrivals = counts_N3.T.tolist()
        outputs = [block.out_channels for block in self.description.blocks]
        return logits, Counts(neurons, spikes, [a * o for a, o in zip(arrivals, outputs, strict=True)])

    @property
    def memory(self) -> int:
        """Bytes beside the weights, of all threads, as the runs so far needed them."""
        return int(self._lib.agmm_memory(self._handle))

    def _run(self, images: ArrayLike, counts: int | None) -> NDArray[np.float32]:
        batch = _checked_images(np.ascontiguousarray(images, np.float32), self.description)
        logits = np.empty((len(batch), self.description.num_classes), np.float32)
        height, width = batch.shape[-3:-1]
        with self._lock:
            status = self._lib.agmm_run(
                self._handle, batch.ctypes.data, len(batch), height, width, logits.ctypes.data, counts
            )
        _raise_for(status)
        return logits


class BinaryConvolution:
    """One binary 3x3 convolution with zero padding of 1, by itself: for tests, checks and measurements.

    Args:
        signs_O33B: an artifact's bits, uint8 `[O, 3, 3, ceil(I / 8)]`.
        in_channels: I.
        stride: 1 or 2.
        pooled: whether inputs are 0 to 4, not 0 and 1; `9 * I` times that must fit 16 bits.
        threads, path: see `NativeNetwork`, also for what is raised.

    """

    def __init__(
        self,
        signs_O33B: NDArray[np.uint8],
        in_channels: int,
        stride: int = 1,
        *,
        pooled: bool = False,
        threads: int = 1,
        path: str | None = None,
    ) -> None:
        _check_layer(signs_O33B, in_channels, stride, POOLED if pooled else 1)
        signs, handle = np.ascontiguousarray(signs_O33B), ctypes.c_void_p()
        self.shape, self.stride, self.most = (len(signs), in_channels), stride, POOLED if pooled else 1
        self.path = _kernels.path(path)
        self._lib, self._lock = _kernels.loaded(), threading.Lock()
        sizes = (*self.shape, stride, 3 if pooled else 1)
        _raise_for(
            self._lib.agmm_layer_create(
                self.path.encode(), _checked_threads(threads), signs.ctypes.data, *sizes, ctypes.byref(handle)
            )
        )
        self._handle = handle
        self._finalizer = weakref.finalize(self, self._lib.agmm_layer_free, handle)

    def __call__(self, x_NHWI: NDArray[np.uint8]) -> NDArray[np.int16]:
        """Values 0 to `most` `[N, H, W, I]` to exact sums `[N, H', W', O]`. Raises ValueError for anything else."""
        x = np.ascontiguousarray(x_NHWI)
        outs, ins = self.shape
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != ins or not all(0 < s <= _MOST_SIDE for s in x.shape[:3]):
            raise ValueError(f"Need uint8 [N, H, W, {ins}], 1 to {_MOST_SIDE} of each; got {x.dtype} {list(x.shape)}.")
        number, height, width, _ = x.shape
        out = np.empty((number, -(-height // self.stride), -(-width // self.stride), outs), np.int16)
        with self._lock:
            status = self._lib.agmm_layer_run(self._handle, x.ctypes.data, number, height, width, out.ctypes.data)
        if status == _TOO_LARGE:
            raise ValueError(f"Values are 0 to {self.most}, got {x.max()}.")
        _raise_for(status)
        return out


def binary_convolution(
    x_NHWI: NDArray[np.uint8],
    signs_O33B: NDArray[np.uint8],
    stride: int = 1,
    *,
    path: str | None = None,
    threads: int = 1,
) -> NDArray[np.int32]:
    """`BinaryConvolution` once, of values 0 to 4: int32 `[N, H', W', O]`."""
    pooled = bool(x_NHWI.max(initial=0) > 1)
    layer = BinaryConvolution(signs_O33B, x_NHWI.shape[-1], stride, pooled=pooled, threads=threads, path=path)
    return layer(x_NHWI).astype(np.int32)


def fits(in_channels: int, stride: int, side: int) -> bool:
    """Whether the kernels take spikes of so many channels, at that stride, with sides and images up to `side`."""
    return stride in (1, 2) and 9 * in_channels <= np.iinfo(np.int16).max and side <= _MOST_SIDE


def pack_spikes(x_NHWI: NDArray[np.float32], bits: NDArray[np.int64], *, threads: int = 1) -> None:
    """Spikes, 0 and 1, into `bits` `[N, H + 2, W + 2, ceil(I / 64)]`, which get a border of zeros.

    Raises ValueError for another value. The caller sees to shapes, types and memory, here and in the two below.
    """
    if _kernels.loaded().agmm_pack_spikes(
        _kernels.path().encode(), threads, x_NHWI.ctypes.data, *x_NHWI.shape, bits.ctypes.data
    ):
        raise ValueError("Spikes are 0 or 1, and these hold another value.")


def unpack_spikes(bits: NDArray[np.int64], x_NHWI: NDArray[Any], *, threads: int = 1) -> None:
    """The inverse of `pack_spikes`, to float32, or to the 16 bits of a bfloat16, a type that NumPy does not know."""
    half = x_NHWI.itemsize == 2
    _kernels.loaded().agmm_unpack_spikes(
        _kernels.path().encode(), threads, bits.ctypes.data, *x_NHWI.shape, half, x_NHWI.ctypes.data
    )


def convolve_spikes(
    bits: NDArray[np.int64],
    weights_O33I: NDArray[np.float32],
    stride: int,
    out_NHWO: NDArray[np.int16],
    *,
    threads: int = 1,
) -> None:
    """Packed spikes by the signs of weights, +1 for zeros, into `out`. Raises MemoryError."""
    number, rows, columns, _ = bits.shape
    outs, *_, ins = weights_O33I.shape
    sizes = (number, rows - 2, columns - 2, ins)
    _raise_for(
        _kernels.loaded().agmm_convolve_spikes(
            _kernels.path().encode(),
            threads,
            bits.ctypes.data,
            *sizes,
            weights_O33I.ctypes.data,
            outs,
            stride,
            out_NHWO.ctypes.data,
        )
    )


def multiply_adds(rounds: int, *, path: str | None = None) -> int:
    """Do float32 multiply-adds in registers, on one thread; returns how many: what measures a processor's peak."""
    lib, half = _kernels.loaded(), ctypes.c_float(0.5)
    return int(lib.agmm_multiply_adds(_kernels.path(path).encode(), rounds, ctypes.byref(half)))


def _checked_threads(threads: int) -> int:
    if not 1 <= threads <= _MOST_THREADS:
        raise ValueError(f"threads must be 1 to {_MOST_THREADS}, got {threads}.")
    return int(threads)


def _checked_images(batch: NDArray[np.float32], description: Description) -> NDArray[np.float32]:
    steps = (description.time_steps,) if description.input.frames else ()
    axes = ["B", *map(str, steps), "H", "W", str(description.input.channels)]
    fits = batch.ndim == len(axes) and batch.shape[-1] == description.input.channels and batch.shape[1:-3] == steps
    if not fits or not all(1 <= side <= _MOST_SIDE for side in batch.shape[-3:-1]):
        raise ValueError(
            f"{shown(description.name)} takes [{', '.join(axes)}] with H and W of 1 to {_MOST_SIDE}, "
            f"got {list(batch.shape)}."
        )
    if not np.isfinite(batch).all():
        raise ValueError("The images have values that are not finite. Look at where they were normalised.")
    return batch


def _check_layer(signs: NDArray[Any], in_channels: int, stride: int, most: int) -> None:
    wanted = (3, 3, -(-in_channels // 8))
    if signs.dtype != np.uint8 or signs.ndim != 4 or signs.shape[1:] != wanted or 0 in signs.shape:
        raise ValueError(f"{in_channels} channels need uint8 signs [O, 3, 3, {wanted[2]}], got {list(signs.shape)}.")
    if stride not in (1, 2):
        raise ValueError(f"A stride is 1 or 2, got {stride}.")
    if 9 * most * in_channels > np.iinfo(np.int16).max:
        raise ValueError(f"{in_channels} channels of values up to {most} sum to more than 16 bits hold.")


def _raise_for(status: int) -> None:
    if status:
        raise MemoryError("Not enough memory for the network. Use fewer threads or smaller images.")
