"""Does a store keep its word? Each promise that checkpoints rest on is tried once, with a file of a few bytes."""

from __future__ import annotations

import tempfile
import uuid
from contextlib import suppress
from pathlib import Path

from pipelines.errors import ServiceError
from pipelines.storage import Store


def probe(store: Store) -> None:
    """Create, create again, write over, list, read and delete. Raises ServiceError for what is refused or wrong."""
    folder = f"probe-{uuid.uuid4().hex}"
    claim, file = f"{folder}/claim", f"{folder}/file"
    try:
        _claims(store, claim)
        _files(store, file)
        _expect(store.keys(f"{folder}/") == [claim, file], store, "does not list what it holds")
    except ServiceError:
        with suppress(ServiceError):  # the first failure tells more
            store.delete([claim, file])
        raise
    store.delete([claim, file])
    _expect(store.keys(f"{folder}/") == [], store, "still lists what was deleted")


def _claims(store: Store, key: str) -> None:
    """Of several attempts of a run one must win, by the condition that a file is new."""
    _expect(store.create(key, b"first"), store, "refuses to create a file that is not there")
    _expect(not store.create(key, b"second"), store, "writes over a file that was to be created (If-None-Match)")
    _expect(store.read(key) == b"first", store, "returns other bytes than were written")


def _files(store: Store, key: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        for content in (b"one", b"three"):
            path.write_bytes(content)
            store.put(path, key)
            _expect(store.read(key) == content, store, "returns an older file than was written")


def _expect(kept: bool, store: Store, what: str) -> None:
    if not kept:
        raise ServiceError(
            f"{store.uri} {what}: checkpoints would not be safe there. Set checkpoint.uri or AGMM_STORE to one that "
            "is consistent and knows conditional writes, as AWS S3, SeaweedFS and a local folder are."
        )
