"""A built data set in a store, where it is staged from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pipelines.data.chunks import Chunks, chunk_list
from pipelines.data.download import Download, again
from pipelines.data.manifest import MANIFEST, Manifest, chunks_from, parse_manifest
from pipelines.errors import ServiceError, UserError
from pipelines.storage import Store, open_store

_TRIES = 2


@dataclass(frozen=True)
class Origin:
    """A data set in a store. `content` is its manifest as it is written there, and names it by `key`."""

    store: Store
    manifest: Manifest
    content: bytes

    @property
    def key(self) -> str:
        """SHA-256 of the manifest's file, in hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def bytes(self) -> int:
        """Of all its `.beton` files."""
        return sum(entry.bytes for entry in self.manifest.splits.values())

    def downloads(self, folder: Path) -> dict[str, Download]:
        """How each split's file comes into `folder`. Raises ServiceError for a damaged list of chunks."""
        return {
            split: Download(self.store, f"{split}.beton", folder / f"{split}.beton", self._chunks(split))
            for split in self.manifest.splits
        }

    def _chunks(self, split: str) -> Chunks:
        entry, key = self.manifest.splits[split], chunk_list(f"{split}.beton")
        if entry.chunks is None:
            return Chunks(entry.bytes)
        for _ in range(_TRIES):
            if chunks := chunks_from(entry, self.store.read(key)):
                return chunks
        raise ServiceError(f"{self.store.uri}/{key} is damaged: its SHA-256 is not the manifest's. {again(self.store)}")


def open_origin(uri: str, *, proven: bool = False) -> Origin:
    """The data set at an address; `proven` is that of `open_store`.

    Raises UserError where there is none or its manifest is damaged, and ServiceError.
    """
    store = open_store(uri, proven=proven)
    where = f"{store.uri}/{MANIFEST}"
    content = _manifest_in(store)
    try:
        return Origin(store, parse_manifest(content, where), content)
    except UserError:  # damaged on its way?
        content = _manifest_in(store)
        return Origin(store, parse_manifest(content, where), content)


def _manifest_in(store: Store) -> bytes:
    try:
        return store.read(MANIFEST)
    except ServiceError as error:
        if MANIFEST in store.keys(MANIFEST):
            raise
        raise UserError(
            f"{store.uri} has no {MANIFEST}: not a data set, or its upload did not finish. Upload one: `agmm data "
            f"push FOLDER {store.uri}`."
        ) from error
