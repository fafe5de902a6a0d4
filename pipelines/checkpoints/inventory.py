"""The checkpoints below an address, for people: what `agmm checkpoints` lists and verifies. Needs no torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.checkpoints import committed as protocol
from pipelines.errors import ServiceError, UserError
from pipelines.home import default_store
from pipelines.storage import FolderStore, Store, open_store

COMMITTED, UNFINISHED, OTHER = "committed", "unfinished", "of another format"
WHOLE, DAMAGED = "whole", "damaged"

_NAME = re.compile(r"(?:attempt-(\d+)-)?step-(\d+)")  # without an attempt: of format 1
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_AT_ONCE = 8
_ALLOWED = "Give a run's address (a folder or s3://bucket/prefix), a checkpoint's, a folder of runs, or a run's id."


@dataclass(frozen=True)
class Entry:
    """One checkpoint. `name` is its address below the store's, `epoch` that of its next step, where it says one."""

    store: Store
    name: str
    attempt: int | None
    step: int
    epoch: int | None
    bytes: int
    state: str

    def row(self) -> dict[str, Any]:
        """What `--json` prints of it."""
        return {
            "name": self.name,
            "attempt": self.attempt,
            "step": self.step,
            "epoch": self.epoch,
            "bytes": self.bytes,
            "state": self.state,
        }


def entries(uri: str) -> list[Entry]:
    """All checkpoints at `uri`, unfinished ones too, by run, attempt and step.

    uri: of a run, of one checkpoint, of a folder of runs; or a run's id, below the default store.

    Raises:
        UserError: where the address is wrong, or the server refuses it.
        ServiceError: where the store does not answer.

    """
    base, wanted = _split(_address(uri))
    store = open_store(base)
    _check_folder(store)
    files: dict[str, list[str]] = {}
    for key in _keys(store, f"{wanted}/" if wanted else ""):
        folder, _, file = key.rpartition("/")
        if folder.count("/") <= 1 and _NAME.fullmatch(folder.rpartition("/")[2]):
            files.setdefault(folder, []).append(file)
    if wanted and not files:
        raise UserError(f"There is no checkpoint {wanted} at {store.uri}. `agmm checkpoints list {store.uri}` has all.")
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(partial(_entry, store), files, files.values()))
    return sorted(found, key=lambda entry: (entry.name.rpartition("/")[0], entry.attempt or 0, entry.step))


def problems(entry: Entry, advance: Callable[[int], None]) -> list[str]:
    """Hash every file of a committed checkpoint; what is missing, damaged or unreadable, in words, each by its name.

    advance: told the bytes of each block once it is hashed.
    """
    try:
        described = protocol.read_manifest(entry.store, entry.name)
    except ServiceError as error:
        return [str(error)]
    return [str(problem) for problem in protocol.problems(entry.store, entry.name, described, advance)]


def _address(uri: str) -> str:
    is_id = _RUN_ID.fullmatch(uri) and not Path(uri).exists()
    return f"{default_store()}/checkpoints/{uri}" if is_id else uri.rstrip("/") or "/"


def _split(address: str) -> tuple[str, str]:
    """The address of a run or of runs, and a checkpoint's name where the address is one's."""
    base, slash, name = address.rpartition("/")
    return (base or slash or ".", name) if _NAME.fullmatch(name) else (address, "")


def _check_folder(store: Store) -> None:
    if not isinstance(store, FolderStore) or (store.root.is_dir() and os.access(store.root, os.R_OK | os.X_OK)):
        return
    if store.root.is_dir():
        raise UserError(f"{store.uri} may not be read by this user. Change its permissions, or ask its owner.")
    what = "is a file" if store.root.is_file() else "does not exist"
    raise UserError(f"{store.uri} {what}. {_ALLOWED}")


def _keys(store: Store, prefix: str) -> list[str]:
    try:
        return store.keys(prefix)
    except ServiceError as error:
        answer = getattr(error.__cause__, "response", {})  # of an S3 server
        if 400 <= answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) < 500:
            raise UserError(str(error)) from error
        raise


def _entry(store: Store, name: str, files: list[str]) -> Entry:
    found = _NAME.fullmatch(name.rpartition("/")[2])
    assert found is not None, name
    return Entry(
        store,
        name,
        attempt=int(found[1]) if found[1] else None,
        step=int(found[2]),
        epoch=_json(store, f"{name}/{protocol.STATE}", files).get("position", {}).get("epoch"),
        bytes=sum(_size(store, f"{name}/{file}") for file in files),
        state=_state(store, name, files),
    )


def _state(store: Store, name: str, files: list[str]) -> str:
    """As far as it can be told without hashing."""
    if protocol.MARKER not in files:
        return UNFINISHED
    written = _json(store, f"{name}/{protocol.MANIFEST}", files).get("format", protocol.FORMAT)
    return COMMITTED if written == protocol.FORMAT else OTHER


def _json(store: Store, key: str, files: list[str]) -> dict[str, Any]:
    """A small file's object; empty where there is none, or it is damaged, which `verify` tells."""
    if key.rpartition("/")[2] not in files:
        return {}
    try:
        value = json.loads(store.read(key))
    except (ServiceError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _size(store: Store, key: str) -> int:
    try:
        return store.size(key)
    except ServiceError:
        if key in store.keys(key):
            raise
        return 0  # a run that goes on has removed it meanwhile
