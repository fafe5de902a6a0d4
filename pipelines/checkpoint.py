"""Committed checkpoints: files, then a manifest with their SHA-256, then a marker; readers trust what has all three.

Layout below a run's address: `step-000000120/{model,optimizer,signs}.safetensors`, `state.json`, `manifest.json`,
`COMMITTED`. The marker holds the manifest's own hash and is written last and deleted first.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from pipelines.errors import ServiceError
from pipelines.storage import Store

_FORMAT = 1
_PARTS = ("model", "optimizer", "signs")
_MARKER, _MANIFEST, _STATE = "COMMITTED", "manifest.json", "state.json"


@dataclass(frozen=True)
class Position:
    """How far a run has come: `step` optimiser steps in all, the next is step `offset` of `epoch`."""

    epoch: int = 0
    offset: int = 0
    step: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on. Tensors are on the CPU."""

    position: Position
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    signs: dict[str, Tensor]
    config: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    code_version: str = ""


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimiser's state tensors as `index.name`; rates and decay are functions of the configuration."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": value for index, slot in state.items() for name, value in slot.items() if value is not None
    }


def restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, for an optimiser of the same parameters."""
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        slots.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers, contiguous on the CPU."""
    return {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}


def save(store: Store, checkpoint: Checkpoint) -> str:
    """Commit a checkpoint; returns its name. Raises ServiceError where the store or the scratch disk fails."""
    name = f"step-{checkpoint.position.step:09d}"
    with tempfile.TemporaryDirectory(prefix="agmm-checkpoint-") as scratch:
        folder = Path(scratch)
        try:
            _write_files(folder, checkpoint)
        except OSError as error:
            raise ServiceError(f"Cannot write a checkpoint to {folder}: {error}. Free space, or set TMPDIR.") from error
        store.delete([f"{name}/{_MARKER}"])  # a damaged one of the same step may stand there
        for file in (*sorted(_hashed(folder)), _MANIFEST, _MARKER):
            store.put(folder / file, f"{name}/{file}")
    return name


def committed(store: Store) -> list[str]:
    """Names of committed checkpoints, oldest first."""
    return sorted(key.split("/")[0] for key in store.keys("step-") if key.endswith(f"/{_MARKER}"))


def load(store: Store, name: str) -> Checkpoint:
    """Read and verify one committed checkpoint. Raises ServiceError naming the file that is missing or damaged."""
    with tempfile.TemporaryDirectory(prefix="agmm-checkpoint-") as scratch:
        folder = Path(scratch)
        _fetch_verified(store, name, folder)
        state = json.loads((folder / _STATE).read_text())
        model, optimizer, signs = (load_file(folder / f"{part}.safetensors") for part in _PARTS)
    return Checkpoint(Position(**state.pop("position")), model, optimizer, signs, **state)


def load_newest(store: Store, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest committed checkpoint that verifies; damaged ones are named through `say` and passed over."""
    for name in reversed(committed(store)):
        try:
            return load(store, name)
        except ServiceError as error:
            say(f"checkpoint {name} is not usable, trying the one before: {error}")
    return None


def prune(store: Store, keep: int) -> None:
    """Delete all but the newest `keep` committed checkpoints, each marker first, and what older uploads left behind."""
    kept = committed(store)[-keep:]
    if not kept:
        return
    old = {key.split("/")[0] for key in store.keys("step-")} - set(kept)
    for name in sorted(name for name in old if name < kept[-1]):
        store.delete([f"{name}/{_MARKER}"])
        store.delete(store.keys(f"{name}/"))


def _write_files(folder: Path, checkpoint: Checkpoint) -> None:
    for part in _PARTS:
        tensors = {name: value.contiguous() for name, value in getattr(checkpoint, part).items()}
        write_tensors(tensors, folder / f"{part}.safetensors")
    state = {
        "position": asdict(checkpoint.position),
        "config": checkpoint.config,
        "metrics": checkpoint.metrics,
        "code_version": checkpoint.code_version,
    }
    (folder / _STATE).write_text(json.dumps(state, indent=1, sort_keys=True))
    manifest = json.dumps({"format": _FORMAT, "sha256": _hashed(folder)}, indent=1, sort_keys=True).encode()
    (folder / _MANIFEST).write_bytes(manifest)
    (folder / _MARKER).write_text(hashlib.sha256(manifest).hexdigest())


def _fetch_verified(store: Store, name: str, folder: Path) -> None:
    manifest = store.read(f"{name}/{_MANIFEST}")
    if hashlib.sha256(manifest).hexdigest() != store.read(f"{name}/{_MARKER}").decode(errors="replace"):
        raise ServiceError(f"{store.uri}/{name}/{_MANIFEST} does not have the hash that was committed.")
    described = json.loads(manifest)
    if described["format"] != _FORMAT:
        raise ServiceError(
            f"{store.uri}/{name} has format {described['format']}; this version reads {_FORMAT}. "
            "Use the version that wrote it."
        )
    for file, digest in described["sha256"].items():
        if Path(file).name != file:
            raise ServiceError(f"{store.uri}/{name}/{_MANIFEST} names a file outside its folder: {file!r}.")
        store.get(f"{name}/{file}", folder / file)
        if sha256_of(folder / file) != digest:
            raise ServiceError(f"{store.uri}/{name}/{file} does not have the hash that was committed.")


def _hashed(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in folder.iterdir() if path.name not in (_MANIFEST, _MARKER)}


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file. Raises OSError where it cannot be written."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # what the library makes of a full disk
        raise OSError(str(error)) from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
