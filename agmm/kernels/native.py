"""The compiled passes over a convolution's output: AVX-512, AVX2 or any processor, by ctypes.

Installing the package compiles `agmm/kernels/native` where there is a compiler; without one, `available()` is empty,
`why_not()` says why, and the reference runs. Tensors are float32 on the CPU, of one layout, which `Layout` sees to: the
C++ side trusts sizes and pointers.

Axes: T time steps, B batch, C channels, P pixels.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable, Sequence
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agmm.library import CompiledLibrary

LIBRARY_VARIABLE = "AGMM_FUSED_LIBRARY"
# As in native/api.h and native/kernels.h.
ABI, MOST_STEPS = 4, 32
_MOST_THREADS = 256
_LONG_LINE = 4096  # values side by side: the tail of a line that is not a whole vector then costs nothing


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("steps", "batch", "channels", "pixels")),
        *((name, c_int32) for name in ("channels_last", "threads")),
    ]


class _Neuron(ctypes.Structure):
    _fields_ = [*((name, c_float) for name in ("leak", "threshold", "width")), ("hard", c_int32), ("detach", c_int32)]


class _Counts(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("n", "sums", "unit")]


class _Term(ctypes.Structure):
    _fields_ = [("counts", _Counts), *((name, c_void_p) for name in ("scale", "shift", "gate"))]


class _Stream(ctypes.Structure):
    _fields_ = [("r", c_void_p), ("r_step", c_int64), ("terms", POINTER(_Term)), ("number", c_int64)]


class _Forward(ctypes.Structure):
    _fields_ = [("stream", _Stream), ("x", c_void_p), ("spikes", c_void_p)]


class _Backward(ctypes.Structure):
    _fields_ = [
        ("stream", _Stream),
        *((name, c_void_p) for name in ("grad_x", "grad_spikes")),
        ("counts", _Counts),
        *((name, c_void_p) for name in ("centre", "g", "sums")),
    ]


class _Affine(ctypes.Structure):
    _fields_ = [
        ("g", c_void_p),
        ("counts", _Counts),
        *((name, c_void_p) for name in ("centre", "times", "by_g", "by_n", "rest", "dn", "half")),
    ]


class _Events(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("images", "height", "width", "ins", "outs")),
        ("threads", c_int32),
        *((name, c_void_p) for name in ("bits", "grad", "half", "dweights")),
    ]


@dataclass(frozen=True)
class Neuron:
    """What the passes know of an `agmm.neuron.LIF`."""

    leak: float
    threshold: float
    width: float
    detach_reset: bool
    hard: bool

    def struct(self) -> _Neuron:
        """AgmmNeuron."""
        return _Neuron(self.leak, self.threshold, self.width, self.hard, self.detach_reset)


@dataclass(frozen=True)
class Layout:
    """Where values lie: `[T, B, C, P]`, or `[T, B, P, C]` where channels come last."""

    steps: int
    batch: int
    channels: int
    pixels: int
    channels_last: bool = False

    @classmethod
    def of(cls, x_TBCHW: Tensor) -> Layout:
        """Of a tensor as its steps lie; what lies otherwise, or has other axes behind T, is to become the first."""
        if x_TBCHW.ndim != 5:
            return cls(x_TBCHW.shape[0], 1, 1, math.prod(x_TBCHW.shape[1:]))
        steps, batch, channels, height, width = x_TBCHW.shape
        own = x_TBCHW[:1] if x_TBCHW.stride(0) == 0 else x_TBCHW
        last = not own.is_contiguous() and _images(own).is_contiguous(memory_format=torch.channels_last)
        return cls(steps, batch, channels, height * width, last)

    @classmethod
    def lines(cls, x_T: Tensor) -> Layout:
        """Of values `[T, ...]` that do not depend on each other: as long lines as there are, but several to share."""
        pixels = 1
        for size in reversed(x_T.shape[1:]):
            pixels *= size if pixels < _LONG_LINE else 1
        return cls(x_T.shape[0], 1, math.prod(x_T.shape[1:]) // max(1, pixels), pixels)

    def dense(self, x_TBCHW: Tensor) -> Tensor:
        """`x` in this layout, itself where it is."""
        if not self.channels_last:
            return x_TBCHW.contiguous()
        images = _images(x_TBCHW).contiguous(memory_format=torch.channels_last)
        return images.unflatten(0, x_TBCHW.shape[:2])

    def repeated(self, x_TBCHW: Tensor) -> tuple[Tensor, int]:
        """`x` in this layout, and the distance of its steps: 0 where all are the same memory, which is kept so."""
        if x_TBCHW.stride(0) == 0 and self.steps > 1:
            return self.dense(x_TBCHW[:1]), 0
        return self.dense(x_TBCHW), self.batch * self.channels * self.pixels

    def struct(self) -> _Shape:
        """AgmmShape, with as many threads as torch has."""
        return _Shape(self.steps, self.batch, self.channels, self.pixels, self.channels_last, _threads())

    def coefficients(self, *leading: int) -> Tensor:
        """Room for float64 sums `[*leading, T, B, C]`."""
        return torch.empty(*leading, self.steps, self.batch, self.channels, dtype=torch.float64)


def _images(x_TBCHW: Tensor) -> Tensor:
    return x_TBCHW.flatten(0, 1)


@dataclass(frozen=True)
class Counts:
    """A convolution's output n, float32 or int16, in units of its channels `[C]` where these are given."""

    values: Tensor
    unit: Tensor | None = None

    def struct(self) -> _Counts:
        """AgmmCounts."""
        whole = self.values.dtype == torch.int16
        return _Counts(**{"sums" if whole else "n": _at(self.values)}, unit=_at(self.unit))


@dataclass(frozen=True)
class Term:
    """gate * (scale * n + shift): n, scale and shift `[C]`, the gate of every value, float32 `[T, B, C]`."""

    n: Counts
    affine: tuple[Tensor, Tensor, Tensor]

    def struct(self) -> _Term:
        """AgmmTerm."""
        return _Term(self.n.struct(), *map(_at, self.affine))


@dataclass(frozen=True)
class Stream:
    """x = r + the terms, one after the other; the steps of r are `r_step` values apart, 0 for all the same."""

    r: Tensor | None
    r_step: int = 0
    terms: Sequence[Term] = ()

    def struct(self) -> _Stream:
        """AgmmStream."""
        terms = (_Term * len(self.terms))(*(term.struct() for term in self.terms))
        return _Stream(_at(self.r), self.r_step, terms, len(self.terms))


def moments(layout: Layout, n: Counts) -> Tensor:
    """Sums of `n` over P, and of its squares, in float64: `[2, T, B, C]`."""
    sums = layout.coefficients(2)
    _call("moments", layout, ctypes.byref(n.struct()), _at(sums))
    return sums


def forward(layout: Layout, neuron: Neuron, stream: Stream, x: Tensor | None, spikes: Tensor | None) -> None:
    """The stream into `x`, and its spikes, each where it is asked for."""
    job = _Forward(stream.struct(), _at(x), _at(spikes))
    _call("forward", layout, ctypes.byref(neuron.struct()), ctypes.byref(job))


def backward(
    layout: Layout,
    neuron: Neuron,
    stream: Stream,
    grads: Iterable[Tensor | None],
    n: Counts | None,
    centre: Tensor | None,
    g: Tensor,
) -> Tensor:
    """dL/dx into `g`, of the gradients of (x, spikes). Of `n`: sums of g and of g * (n - centre), `[2, T, B, C]`.

    Without a gradient of the spikes the stream is not looked at.
    """
    sums = layout.coefficients(2) if n is not None else None
    counts = n.struct() if n is not None else _Counts()
    job = _Backward(stream.struct(), *map(_at, grads), counts, _at(centre), _at(g), _at(sums))
    _call("backward", layout, ctypes.byref(neuron.struct()), ctypes.byref(job))
    return sums if sums is not None else layout.coefficients(0)


def affine(
    layout: Layout,
    g: Tensor,
    n: Counts,
    centre: Tensor,
    times: Tensor | None,
    factors: tuple[Tensor, Tensor, Tensor],
    dn: Tensor,
) -> None:
    """dn = times * (by_g * g + by_n * (n - centre) + rest) into `dn`, bfloat16 or float32, which may be `g`.

    `times` is `[C]`, None for 1; the factors are `[T, B, C]`, `[C]`, `[T, B, C]`.
    """
    into = {"half" if dn.dtype == torch.bfloat16 else "dn": _at(dn)}
    job = _Affine(_at(g), n.struct(), _at(centre), _at(times), *map(_at, factors), **into)
    _call("affine", layout, ctypes.byref(job))


def weight_gradient(bits: Tensor, grad: Tensor, dweights: Tensor) -> None:
    """The gradient of 3x3 weights of a convolution of padding 1 and stride 1 into `dweights`.

    Args:
        bits: spikes with a border, int64 `[N, H + 2, W + 2, words of 64 channels]`.
        grad: of the output, `[N, O, H, W]`, channels last, float32 or bfloat16.
        dweights: `[O, I, 3, 3]`, channels last, float32.

    """
    images, _, height, width = grad.shape
    kind = "half" if grad.dtype == torch.bfloat16 else "grad"
    sizes = (images, height, width, dweights.shape[1], dweights.shape[0], _threads())
    job = _Events(*sizes, bits=_at(bits), **{kind: _at(grad)}, dweights=_at(dweights))
    _kernels.loaded().agmm_fused_weight_gradient(_kernels.path().encode(), ctypes.byref(job))


def _threads() -> int:
    return min(torch.get_num_threads(), _MOST_THREADS)


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _call(name: str, layout: Layout, *arguments: Any) -> None:
    function = getattr(_kernels.loaded(), f"agmm_fused_{name}")
    function(_kernels.path().encode(), ctypes.byref(layout.struct()), *arguments)


def _bind(library: ctypes.CDLL) -> ctypes.CDLL:
    shape, neuron = POINTER(_Shape), POINTER(_Neuron)
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "abi": (c_int32, []),
        "paths": (c_char_p, []),
        "moments": (None, [c_char_p, shape, POINTER(_Counts), c_void_p]),
        "forward": (None, [c_char_p, shape, neuron, POINTER(_Forward)]),
        "backward": (None, [c_char_p, shape, neuron, POINTER(_Backward)]),
        "affine": (None, [c_char_p, shape, POINTER(_Affine)]),
        "weight_gradient": (None, [c_char_p, POINTER(_Events)]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, f"agmm_fused_{name}")
        function.restype, function.argtypes = result, arguments
    return library


_kernels = CompiledLibrary(Path(__file__).parent, _bind, prefix="agmm_fused_", abi=ABI, variable=LIBRARY_VARIABLE)
available, why_not, path = _kernels.available, _kernels.why_not, _kernels.path
