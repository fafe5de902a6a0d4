"""Safetensors files written without holding the interpreter, so that training goes on meanwhile.

The library's own `save_file` copies every tensor to bytes, and held the interpreter for a quarter of a second over
94 MB. Reading is the library's.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_BLOCK = 4 << 20


def write_tensors(tensors: dict[str, Tensor], path: Path) -> str:
    """Write CPU tensors, in any order of axes, to a safetensors file; returns its SHA-256.

    Raises OSError, on a full disk say.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # which keeps them aligned
    digest = hashlib.sha256()
    with path.open("wb") as out:
        for block in itertools.chain([_header(ordered)], *(_blocks(tensor) for _, tensor in ordered)):
            out.write(block)
            digest.update(block)
    return digest.hexdigest()


def _header(ordered: list[tuple[str, Tensor]]) -> Buffer:
    described: dict[str, Any] = {}
    start = 0
    for name, tensor in ordered:
        stop = start + tensor.nbytes
        described[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _blocks(tensor: Tensor) -> list[Buffer]:
    flat = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return [flat[start : start + _BLOCK].data for start in range(0, len(flat), _BLOCK)]
