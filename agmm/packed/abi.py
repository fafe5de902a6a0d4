"""The C structures of `agmm/packed/native/api.h`, filled from a description and its tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_uint8, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agmm.packed.description import Block, Description, Neuron

# As `kAbi` in api.h: another number means that the library was compiled from other sources.
ABI = 3
Library = Any
_GATES = {"none": 0, "sample": 1, "channel": 2}
_SHORTCUTS = {"none": 0, "identity": 1, "projection": 2}
_TYPES = {"F32": np.float32, "F64": np.float64, "U8": np.uint8}
_C_TYPES: dict[Any, Any] = {
    np.dtype(np.float32): c_float,
    np.dtype(np.float64): c_double,
    np.dtype(np.uint8): c_uint8,
}


class NeuronStruct(ctypes.Structure):
    """AgmmNeuron."""

    _fields_ = [("threshold", c_float), ("leak", c_float), ("start", c_float), ("hard", c_int32)]


class StemStruct(ctypes.Structure):
    """AgmmStem."""

    _fields_ = [
        *((name, c_int32) for name in ("in_channels", "channels", "kernel", "stride", "max_pool")),
        ("weight", POINTER(c_float)),
        ("affine", POINTER(c_double)),
    ]


class BlockStruct(ctypes.Structure):
    """AgmmBlock."""

    _fields_ = [
        *((name, c_int32) for name in ("in_channels", "out_channels", "stride", "pool", "gate", "shortcut")),
        ("affine_steps", c_int32),
        ("neuron", NeuronStruct),
        ("signs", POINTER(c_uint8)),
        ("affine", POINTER(c_double)),
        ("alpha", POINTER(c_double)),
        ("shortcut_weight", POINTER(c_float)),
        ("shortcut_affine", POINTER(c_double)),
    ]


class TailStruct(ctypes.Structure):
    """AgmmTail."""

    _fields_ = [
        *((name, c_int32) for name in ("spikes", "pool", "grid", "classes")),
        ("neuron", NeuronStruct),
        ("amplitude", c_float),
        ("weight", POINTER(c_float)),
        ("bias", POINTER(c_float)),
    ]


class NetworkStruct(ctypes.Structure):
    """AgmmNetwork."""

    _fields_ = [
        *((name, c_int32) for name in ("steps", "frames", "blocks", "threads")),
        ("path", c_char_p),
        ("stem", StemStruct),
        ("block", POINTER(BlockStruct)),
        ("tail", TailStruct),
    ]


def bind(library: ctypes.CDLL) -> Library:
    """The library with the types of its functions."""
    sizes = [c_int64, c_int32, c_int32]
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "agmm_abi": (c_int32, []),
        "agmm_paths": (c_char_p, []),
        "agmm_multiply_adds": (c_int64, [c_char_p, c_int64, POINTER(c_float)]),
        "agmm_create": (c_int, [POINTER(NetworkStruct), POINTER(c_void_p)]),
        "agmm_free": (None, [c_void_p]),
        "agmm_run": (c_int, [c_void_p, c_void_p, *sizes, c_void_p, c_void_p]),
        "agmm_memory": (c_int64, [c_void_p]),
        "agmm_layer_create": (c_int, [c_char_p, c_int32, c_void_p, *[c_int32] * 4, POINTER(c_void_p)]),
        "agmm_layer_free": (None, [c_void_p]),
        "agmm_pack_spikes": (c_int, [c_char_p, c_int32, c_void_p, c_int64, *[c_int32] * 3, c_void_p]),
        "agmm_unpack_spikes": (None, [c_char_p, c_int32, c_void_p, c_int64, *[c_int32] * 4, c_void_p]),
        "agmm_convolve_spikes": (
            c_int,
            [c_char_p, c_int32, c_void_p, c_int64, *[c_int32] * 3, c_void_p, *[c_int32] * 2, c_void_p],
        ),
        "agmm_layer_run": (c_int, [c_void_p, c_void_p, *sizes, c_void_p]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def fill(
    description: Description, tensors: Mapping[str, NDArray[Any]], threads: int, path: str
) -> tuple[NetworkStruct, list[Any]]:
    """The structure of a network, and what must live as long as it is read.

    Raises ValueError for tensors that are not the description's, or not finite.
    """
    pointers = _Pointers(description, tensors)
    blocks = (BlockStruct * len(description.blocks))(
        *(_block(number, block, pointers, description) for number, block in enumerate(description.blocks))
    )
    struct = NetworkStruct(
        steps=description.time_steps,
        frames=description.input.frames,
        blocks=len(blocks),
        threads=threads,
        path=path.encode(),
        stem=_stem(description, pointers),
        block=blocks,
        tail=_tail(description, pointers),
    )
    return struct, [blocks, pointers]


class _Pointers:
    """Addresses of tensors, which are checked first and kept."""

    def __init__(self, description: Description, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._kept: list[Any] = []
        self._tensors: dict[str, NDArray[Any]] = {}
        for name, (kind, shape) in description.shapes().items():
            tensor = np.ascontiguousarray(tensors[name], _TYPES[kind]) if name in tensors else None
            if tensor is None or tensor.shape != shape:
                raise ValueError(f"The network needs {name} of shape {shape}, got {getattr(tensor, 'shape', None)}.")
            if not np.isfinite(tensor).all():
                raise ValueError(f"{name} has values that are not finite.")
            self._tensors[name] = tensor

    def __call__(self, name: str, factor_2: tuple[float, float] | None = None) -> Any:
        """Null for a tensor that the network has not. factor_2: of an affine's scale and bias."""
        tensor = self._tensors.get(name)
        if tensor is None:
            return None
        if factor_2 is not None:
            tensor = tensor * np.array(factor_2)[:, None, None]
        self._kept.append(tensor)
        return tensor.ctypes.data_as(POINTER(_C_TYPES[tensor.dtype]))


def _neuron(neuron: Neuron | None) -> NeuronStruct:
    if neuron is None:
        return NeuronStruct()
    return NeuronStruct(neuron.threshold, neuron.leak, neuron.start, neuron.reset == "hard")


def _stem(description: Description, pointers: _Pointers) -> StemStruct:
    stem = description.stem
    return StemStruct(
        in_channels=description.input.channels,
        channels=stem.channels,
        kernel=stem.kernel,
        stride=stem.stride,
        max_pool=stem.max_pool,
        weight=pointers("stem.weight"),
        affine=pointers("stem.affine"),
    )


def _block(number: int, block: Block, pointers: _Pointers, description: Description) -> BlockStruct:
    name = f"blocks.{number}"
    return BlockStruct(
        in_channels=block.in_channels,
        out_channels=block.out_channels,
        stride=block.stride,
        pool=block.pool,
        gate=_GATES[block.gate],
        shortcut=_SHORTCUTS[block.shortcut],
        affine_steps=description.time_steps if description.norm_per_step else 1,
        neuron=_neuron(block.neuron),
        signs=pointers(f"{name}.signs"),
        affine=pointers(f"{name}.affine", (block.unit, 1.0)),
        alpha=pointers(f"{name}.alpha"),
        shortcut_weight=pointers(f"{name}.shortcut.weight"),
        shortcut_affine=pointers(f"{name}.shortcut.affine"),
    )


def _tail(description: Description, pointers: _Pointers) -> TailStruct:
    tail = description.tail
    return TailStruct(
        spikes=tail.kind == "spikes",
        pool=tail.pool,
        grid=tail.grid,
        classes=description.num_classes,
        neuron=_neuron(tail.neuron),
        amplitude=tail.neuron.amplitude if tail.neuron else 1.0,
        weight=pointers("head.weight"),
        bias=pointers("head.bias"),
    )
