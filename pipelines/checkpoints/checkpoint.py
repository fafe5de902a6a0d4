"""Committed checkpoints: files, then a manifest with their SHA-256, then a marker; readers trust what has all three.

Layout below a run's address: `attempt-0002-step-000000120/{model,optimizer,signs}.safetensors`, `state.json`,
`manifest.json`, `COMMITTED`. The marker holds the manifest's own hash and is written last and deleted first. Names sort
by attempt (see `pipelines.checkpoints.attempts`), then by step: the newest checkpoint is the last.

Generator states are not among the files: every rank's are set from (seed, step, rank) at every step.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from pipelines.checkpoints.attempts import Attempt
from pipelines.checkpoints.committed import FORMAT, MANIFEST, MARKER, PREFIX, STATE, Damaged, damaged, read_manifest
from pipelines.checkpoints.committed import committed as committed
from pipelines.checkpoints.committed import is_name as is_name
from pipelines.checkpoints.committed import verify as verify
from pipelines.checkpoints.tensor_file import write_tensors
from pipelines.errors import NotThere, ServiceError
from pipelines.faults import fault_point
from pipelines.storage import Store

_SCRATCH, _OLD_S = "agmm-checkpoint-", 86400.0
PARTS = ("model", "optimizer", "signs")


@dataclass(frozen=True)
class Position:
    """How far a run has come: `step` optimiser steps in all, the next is step `offset` of `epoch`."""

    epoch: int = 0
    offset: int = 0
    step: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on. Tensors are on the CPU.

    signs: packed, as of the last validation. flips: counts of flips from step to step since then, by layer.
    """

    position: Position
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    signs: dict[str, Tensor]
    config: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    flips: dict[str, int] = field(default_factory=dict)
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


def save(attempt: Attempt, checkpoint: Checkpoint) -> str:
    """Commit a checkpoint of an attempt and read it back; returns its name.

    Raises Fenced where a newer attempt has been claimed; ServiceError where the store or the scratch disk fails.
    """
    store, name = attempt.store, f"{PREFIX}{attempt.number:04d}-step-{checkpoint.position.step:09d}"
    attempt.check()
    with _scratch() as folder:
        with _on_scratch(folder):
            hashes = _write_files(folder, checkpoint, attempt.number)
        store.delete([f"{name}/{MARKER}"])  # a damaged one of the same step may stand there
        for file in (*sorted(hashes), MANIFEST):
            _upload(store, folder / file, f"{name}/{file}")
        attempt.check()  # a newer one may have come during the upload
        _fault("checkpoint.commit")
        store.put(folder / MARKER, f"{name}/{MARKER}")
    _fault("checkpoint.verify")
    verify(store, name)
    return name


@contextmanager
def _scratch() -> Iterator[Path]:
    _sweep()
    with _on_scratch(Path(tempfile.gettempdir())):
        folder = tempfile.TemporaryDirectory(prefix=_SCRATCH, ignore_cleanup_errors=True)
    with folder:
        yield Path(folder.name)


def _sweep() -> None:
    """Remove what killed processes left, a day ago or more."""
    with suppress(OSError):
        for left in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*"):
            if time.time() - left.stat().st_mtime > _OLD_S:
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _on_scratch(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ServiceError(f"Cannot write a checkpoint to {folder}: {error}. Free space, or set TMPDIR.") from error


def _upload(store: Store, source: Path, key: str) -> None:
    _fault("checkpoint.manifest" if source.name == MANIFEST else "checkpoint.upload")
    store.put(source, key)


def _fault(point: str) -> None:
    try:
        fault_point(point)
    except OSError as error:
        raise ServiceError(f"{error} (AGMM_FAULTS)") from error


def load(store: Store, name: str) -> Checkpoint:
    """Read and verify one committed checkpoint. Raises ServiceError naming the file that is missing or damaged."""
    with tempfile.TemporaryDirectory(prefix=_SCRATCH) as scratch:
        folder = Path(scratch)
        _fetch_verified(store, name, folder)
        state = json.loads((folder / STATE).read_text())
        model, optimizer, signs = (load_file(folder / f"{part}.safetensors") for part in PARTS)
    return Checkpoint(Position(**state.pop("position")), model, optimizer, signs, **state)


def newest_usable(store: Store, say: Callable[[str], None]) -> str:
    """Name of the newest committed checkpoint that verifies, empty where none was committed; damaged ones are said.

    Raises ServiceError where the store does not answer, or where all that was committed is damaged: a run that began
    again from nothing would remove what may still be saved.
    """
    names = committed(store)
    for name in reversed(names):
        try:
            verify(store, name)
        except (Damaged, NotThere) as error:
            say(f"checkpoint {name} is not usable, trying the one before: {error}")
        else:
            return name
    if names:
        raise ServiceError(
            f"None of the {len(names)} committed checkpoints in {store.uri} is whole, so the run cannot go on. Put a "
            "copy of one back, or start a new run without --resume."
        )
    return ""


def prune(store: Store, keep: int, verified: str) -> None:
    """Delete all but the newest `keep` committed checkpoints, each marker first, and what older uploads left behind.

    verified: the newest that is known to be whole. It stays, and so does what is newer.
    """
    fault_point("checkpoint.prune")
    kept = {*committed(store)[-keep:], verified}
    old = {key.split("/")[0] for key in store.keys(PREFIX)} - kept
    for name in sorted(name for name in old if name < verified):
        store.delete([f"{name}/{MARKER}"])
        store.delete(store.keys(f"{name}/"))


def _write_files(folder: Path, checkpoint: Checkpoint, attempt: int) -> dict[str, str]:
    """Write all files, with manifest and marker; returns the hashes of those in the manifest."""
    fault_point("checkpoint.write")
    hashes = {
        f"{part}.safetensors": write_tensors(getattr(checkpoint, part), folder / f"{part}.safetensors")
        for part in PARTS
    }
    state = {
        "position": asdict(checkpoint.position),
        "config": checkpoint.config,
        "metrics": checkpoint.metrics,
        "flips": checkpoint.flips,
        "code_version": checkpoint.code_version,
    }
    (folder / STATE).write_text(json.dumps(state, indent=1, sort_keys=True))
    hashes[STATE] = sha256_of(folder / STATE)
    described = {"format": FORMAT, "attempt": attempt, "sha256": hashes}
    manifest = json.dumps(described, indent=1, sort_keys=True).encode()
    (folder / MANIFEST).write_bytes(manifest)
    (folder / MARKER).write_text(hashlib.sha256(manifest).hexdigest())
    return hashes


def _fetch_verified(store: Store, name: str, folder: Path) -> None:
    for file, digest in read_manifest(store, name)["sha256"].items():
        store.get(f"{name}/{file}", folder / file)
        if sha256_of(folder / file) != digest:
            raise damaged(store, name, file)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
