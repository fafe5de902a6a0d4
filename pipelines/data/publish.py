"""How a built data set comes into a store, and is checked there."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from pipelines.data.build import OnError, build
from pipelines.data.chunks import chunk_list
from pipelines.data.download import again
from pipelines.data.manifest import MANIFEST, Manifest, beton_path, verify
from pipelines.data.origin import open_origin
from pipelines.data.samples import Source
from pipelines.errors import ServiceError, UserError
from pipelines.home import home
from pipelines.progress import Progress, Say
from pipelines.storage import Store, open_store, sha256_in


def push(folder: str | Path, uri: str, *, overwrite: bool = False, say: Say = lambda _: None) -> str:
    """Upload the data set in a folder, the manifest last, and return its address.

    A data set that is there is replaced with `overwrite` only; meanwhile its manifest is gone, and nobody can stage it.
    Raises UserError for a folder whose files are not what its manifest says, ServiceError where the store fails.
    """
    manifest, store = verify(folder), open_store(uri)
    if MANIFEST in store.keys(MANIFEST):
        if not overwrite:
            raise UserError(_taken(store))
        store.delete([MANIFEST])
    total = sum(entry.bytes for entry in manifest.splits.values())
    with Progress(total, f"uploading {manifest.name}", unit="B") as progress:
        for split, entry in manifest.splits.items():
            path = beton_path(folder, split)
            say(f"uploading {path} to {store.uri}")
            if entry.chunks:
                store.put(path.with_name(chunk_list(path.name)), chunk_list(path.name))
            store.put(path, path.name)
            progress.advance(entry.bytes)
    store.put(Path(folder) / MANIFEST, MANIFEST)
    return store.uri


def build_to(source: Source, uri: str, *, on_error: OnError, overwrite: bool, say: Say) -> Manifest:
    """Build a data set into a folder, or by way of one into S3; raises as `build` and `push`."""
    if not uri.startswith("s3://"):
        return build(source, uri, on_error=on_error, overwrite=overwrite, say=say)
    store = open_store(uri)
    if not overwrite and MANIFEST in store.keys(MANIFEST):
        raise UserError(_taken(store))
    scratch = home() / f"build-{uuid.uuid4().hex}"
    try:
        manifest = build(source, scratch, on_error=on_error, say=say)
        push(scratch, uri, overwrite=overwrite, say=say)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return manifest


def _taken(store: Store) -> str:
    return f"{store.uri} has a data set already. Choose another address, or pass --overwrite."


def verify_origin(uri: str, say: Say = lambda _: None) -> Manifest:
    """Read all of a data set in a store, and check it against its manifest. Raises UserError and ServiceError."""
    origin = open_origin(uri)
    with Progress(origin.bytes, f"checking {origin.manifest.name}", unit="B") as progress:
        for split, download in origin.downloads(Path()).items():
            download.check(progress)
            entry = origin.manifest.splits[split]
            where = f"{origin.store.uri}/{download.key}"
            if not entry.chunks and sha256_in(origin.store, download.key) != entry.sha256:
                raise ServiceError(f"{where} is damaged: its SHA-256 is not the manifest's. {again(origin.store)}")
            say(f"{where}: {entry.count} samples, whole")
    return origin.manifest
