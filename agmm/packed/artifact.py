"""The artifact: one safetensors file, a description in its header, and a SHA-256 of all of it.

The digest is of the file with the digest's own 64 characters as zeros, so that no byte can change unseen. That is
against damage. Against malice, a description and tensors are all there is: no code, every name, type and shape is
known before, sizes are bounded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from agmm.packed.description import FORMAT, VERSION, Description
from agmm.packed.files import shown, whole

# ResNet-18 for ImageNet has 4.3 MB; a file past this is no artifact of this program.
LARGEST = 1 << 30
# A thousand blocks and ten thousand classes take a fourth of this, and parsing a header 30 times its size.
_LARGEST_HEADER = 1 << 22
_KEY, _NO_DIGEST = "agmm_packed", "0" * 64
_MARK = b'\\"sha256\\": \\"'
_MOST = np.finfo(np.float32).max
_TYPES = {"F32": np.float32, "F64": np.float64, "U8": np.uint8}


class Refused(ValueError):
    """This file is no artifact, or not a whole one; the text says why."""


class _Version(BaseModel):
    """What every version of the header has; nothing else of it is looked at before they are known."""

    format: Any = None
    version: Any = None


class _Head(BaseModel):
    """This version's header."""

    network: Description


@dataclass(frozen=True)
class Artifact:
    """A packed network: its description and its tensors, by the names of `Description.shapes`."""

    description: Description
    tensors: Mapping[str, NDArray[Any]]
    size: int = 0  # bytes of the file
    digest: str = ""


def write(artifact: Artifact, path: Path) -> Artifact:
    """Write an artifact, whole or not at all; returns it with its size and digest.

    Raises OSError where the file cannot be written, and Refused where the tensors are not the description's.
    """
    content = to_bytes(artifact)
    with whole(path) as partial:
        partial.write_bytes(content)
    return from_bytes(content, str(path))


def read(path: Path) -> Artifact:
    """Read and check an artifact; no code of it runs.

    Raises Refused, which names the file, for anything else than a whole artifact of this version, and OSError.
    """
    with path.open("rb") as file:  # a size that is asked for before is none of a pipe or a device
        content = file.read(LARGEST + 1) if path.stat().st_size <= LARGEST else None
    if content is None or len(content) > LARGEST:
        raise Refused(f"{path} has more than {LARGEST} bytes; an artifact has at most that many.")
    return from_bytes(content, str(path))


def to_bytes(artifact: Artifact) -> bytes:
    """The file's content. The same artifact gives the same bytes."""
    head = {"format": FORMAT, "version": VERSION, "sha256": _NO_DIGEST}
    text = json.dumps(head | {"network": artifact.description.model_dump(mode="json")})
    shapes = artifact.description.shapes()
    tensors = {name: np.ascontiguousarray(artifact.tensors[name]) for name in sorted(shapes)}
    _check_tensors(artifact.description, tensors, artifact.description.name)
    content = save(tensors, metadata={_KEY: text})  # one key alone: the library does not order several
    start = _digest_at(content, artifact.description.name)
    return content[:start] + _digest(content, start).encode() + content[start + len(_NO_DIGEST) :]


def from_bytes(content: bytes, name: str) -> Artifact:
    """The artifact in a file's content; `name` is what errors call it. Raises as `read`."""
    start = _digest_at(content, name)
    digest = _digest(content, start)
    if content[start : start + len(_NO_DIGEST)] != digest.encode():
        raise Refused(f"{name} does not have the SHA-256 that it names: it was changed or cut short. Fetch it again.")
    try:
        tensors = {key: _array(its) for key, its in deserialize(content)}
        size = int.from_bytes(content[:8], "little")
        text = json.loads(content[8 : 8 + size])["__metadata__"][_KEY]
        version = _Version.model_validate_json(text)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refused(f"{name} is no safetensors file with a packed network: {type(error).__name__}.") from error
    description = _description(text, version, name)
    _check_tensors(description, tensors, name)
    return Artifact(description, tensors, len(content), digest)


def _digest_at(content: bytes, name: str) -> int:
    """Where the digest's characters start. It is in the header, which ends before the tensors."""
    end = 8 + int.from_bytes(content[:8], "little")
    start = content.find(_MARK, 0, end) + len(_MARK)
    if len(content) < end or start < len(_MARK):
        raise Refused(f"{name} is no packed network, or is cut short. `agmm export MODEL --to packed` writes one.")
    if end > _LARGEST_HEADER:
        raise Refused(f"{name} has a header of {end} bytes; an artifact's has at most {_LARGEST_HEADER}.")
    return start


def _digest(content: bytes, start: int) -> str:
    whole, view = hashlib.sha256(), memoryview(content)
    for part in (view[:start], _NO_DIGEST.encode(), view[start + len(_NO_DIGEST) :]):
        whole.update(part)
    return whole.hexdigest()


def _array(tensor: Mapping[str, Any]) -> NDArray[Any]:
    kind = _TYPES[tensor["dtype"]]
    return np.frombuffer(tensor["data"], kind).reshape(tensor["shape"])


def _description(text: str, version: _Version, name: str) -> Description:
    if (version.format, version.version) != (FORMAT, VERSION):
        raise Refused(
            f"{name} has format {shown(repr(version.format))} version {shown(repr(version.version))}; this program "
            f"reads {FORMAT!r} version {VERSION}. Use the version that wrote it, or export the model again."
        )
    try:
        return _Head.model_validate_json(text).network
    except ValidationError as error:
        first = error.errors()[0]
        where = shown(".".join(map(str, first["loc"])))
        raise Refused(f"{name} describes no network of this program: {where}: {first['msg']}.") from error


def _check_tensors(description: Description, tensors: Mapping[str, NDArray[Any]], name: str) -> None:
    wanted = description.shapes()
    if set(wanted) != set(tensors):
        odd = sorted(set(wanted) ^ set(tensors))
        raise Refused(f"{name} has not the tensors that its description names: {', '.join(map(shown, odd[:4]))}.")
    for key, (kind, shape) in wanted.items():
        tensor = tensors[key]
        if (tensor.dtype, tensor.shape) != (np.dtype(_TYPES[kind]), shape):
            raise Refused(f"{name}: {key} must be {kind} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}.")
        if kind != "U8" and not (np.abs(tensor) <= _MOST).all():
            raise Refused(f"{name}: {key} holds NaN or values that float32 does not have.")
    for number, block in enumerate(description.blocks):
        rest = block.in_channels % 8
        if rest and (tensors[f"blocks.{number}.signs"][..., -1] >> rest).any():
            raise Refused(f"{name}: blocks.{number}.signs has padding bits that are not zero.")
