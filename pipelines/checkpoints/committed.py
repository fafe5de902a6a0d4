"""Which checkpoints of a run can be trusted: the plain part of the protocol in `checkpoint`, no tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from pipelines.errors import ServiceError
from pipelines.names import is_file_name
from pipelines.storage import Store, sha256_in

FORMAT = 2
PREFIX = "attempt-"
MARKER, MANIFEST, STATE = "COMMITTED", "manifest.json", "state.json"


class Damaged(ServiceError):
    """A file is not what was committed."""


class OtherFormat(ServiceError):
    """The checkpoint was written by a version that writes another format."""


def is_name(text: str) -> bool:
    """Whether this could be a checkpoint's name."""
    return text.startswith(PREFIX)


def committed(store: Store) -> list[str]:
    """Names of committed checkpoints, oldest first."""
    return sorted(key.split("/")[0] for key in store.keys(PREFIX) if key.endswith(f"/{MARKER}"))


def verify(store: Store, name: str) -> dict[str, Any]:
    """Hash every file of a committed checkpoint where it is; returns its manifest.

    Raises Damaged or NotThere naming the file; any other ServiceError where the store does not answer.
    """
    described = read_manifest(store, name)
    for problem in problems(store, name, described):
        raise problem
    return described


def problems(
    store: Store, name: str, described: dict[str, Any], advance: Callable[[int], None] = lambda _: None
) -> Iterator[ServiceError]:
    """Hash the files of a manifest, and give an error for each that is missing or damaged.

    advance: told the bytes of each block once it is hashed.
    """
    for file, digest in described["sha256"].items():
        try:
            if sha256_in(store, f"{name}/{file}", advance) != digest:
                yield damaged(store, name, file)
        except ServiceError as error:
            yield error


def read_manifest(store: Store, name: str) -> dict[str, Any]:
    """The manifest of a committed checkpoint, once its own hash is the committed one.

    Raises OtherFormat; Damaged or NotThere; any other ServiceError where the store does not answer.
    """
    manifest = store.read(f"{name}/{MANIFEST}")
    if hashlib.sha256(manifest).hexdigest() != store.read(f"{name}/{MARKER}").decode(errors="replace"):
        raise damaged(store, name, MANIFEST)
    described: dict[str, Any] = json.loads(manifest)
    if described["format"] != FORMAT:
        raise OtherFormat(
            f"{store.uri}/{name} has format {described['format']}; this version reads {FORMAT}. "
            "Use the version that wrote it."
        )
    for file in described["sha256"]:
        if not is_file_name(file):
            raise ServiceError(f"{store.uri}/{name}/{MANIFEST} names a file outside its folder: {file!r}.")
    return described


def damaged(store: Store, name: str, file: str) -> Damaged:
    """The error for a file that is not what was committed."""
    return Damaged(f"{store.uri}/{name}/{file} does not have the hash that was committed.")
