"""Files by key in a folder or an S3 bucket: one small interface, so that a checkpoint does not know which."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import urlparse

from pipelines.errors import NotThere, ServiceError, UserError
from pipelines.names import check_s3_address
from pipelines.secrets import refuse_credentials

_BLOCK = 8 << 20


class Store(Protocol):
    """Files below one address. Keys use `/`. Every method raises ServiceError where the place cannot be used."""

    uri: str

    def put(self, source: Path, key: str) -> None:
        """Copy a local file to `key`; readers see the whole file or none."""

    def create(self, key: str, content: bytes) -> bool:
        """Write a small file unless `key` is there; of several who try, one is told True."""

    def get(self, key: str, target: Path) -> None:
        """Copy `key` to a local file."""

    def read(self, key: str) -> bytes:
        """The content of a small file."""

    def size(self, key: str) -> int:
        """Bytes of `key`."""

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes from `start` up to `stop` of `key`, fewer where it ends before."""

    def keys(self, prefix: str) -> list[str]:
        """All keys that start with `prefix`, sorted."""

    def delete(self, keys: list[str]) -> None:
        """Remove keys; one that is not there is fine."""


def open_store(uri: str, *, proven: bool = False) -> Store:
    """The store at a folder's path (`~` is the home), `file://...` or `s3://bucket/prefix`.

    proven: this run has used the address before, in whatever process, so that a server that is not reached is waited
    for from the first request on. Without it that is taken for a wrong address, and said at once.

    Raises UserError for another scheme, credentials in the address, and an S3 configuration that cannot be used.
    """
    refuse_credentials([uri], "A store's address")
    parts = urlparse(uri)
    if parts.scheme == "s3":
        check_s3_address(uri, parts.netloc, parts.path.strip("/"))
        from pipelines.storage.s3 import S3Store  # boto3 takes half a second to import

        return S3Store(parts.netloc, parts.path.strip("/"), proven=proven)
    if parts.scheme not in ("", "file"):
        raise UserError(f"Cannot store files at {uri!r}: the scheme must be s3:// or a folder's path.")
    return FolderStore(_local_path(parts.path if parts.scheme else uri))


def _local_path(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise UserError(f"Cannot store files at {text!r}: {error} Write the folder's path in full.") from error


def check_writable(store: Store, scratch: Path) -> None:
    """Put and delete a small file, so that a bad address is found before any work. Raises ServiceError."""
    probe = scratch / f"probe-{uuid.uuid4().hex}"
    with explained(f"Cannot write {probe}"):
        scratch.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"agmm")
    try:
        store.put(probe, probe.name)
        store.delete([probe.name])
    finally:
        probe.unlink()


def sha256_in(store: Store, key: str, advance: Callable[[int], None] = lambda _: None) -> str:
    """SHA-256 of what is stored at `key`, in hexadecimal, read in blocks whose bytes `advance` is told."""
    digest, size = hashlib.sha256(), store.size(key)
    for start in range(0, size, _BLOCK):
        block = store.read_range(key, start, start + _BLOCK)
        digest.update(block)
        advance(len(block))
    return digest.hexdigest()


class FolderStore:
    """A store in a folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.uri = root, str(root)

    def _at(self, key: str) -> Path:
        """The path of a key. A link that somebody has planted below the root is not followed out of it."""
        path = self.root / key
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.root)):
            raise ServiceError(f"{path} leads out of {self.root}, to {os.path.realpath(path)}. Remove the link.")
        return path

    def _folder_of(self, key: str) -> Path:
        """The folder of a key, for what touches no more than the key's own entry there."""
        return self._at(str(Path(key).parent))

    def put(self, source: Path, key: str) -> None:
        target = self._at(key)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        with explained(f"Cannot write {target}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(source, partial)
                sync(partial)
                partial.replace(target)
                sync(target.parent)
            finally:
                partial.unlink(missing_ok=True)

    def create(self, key: str, content: bytes) -> bool:
        target = self._at(key)
        with explained(f"Cannot write {target}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = self.root / f".{uuid.uuid4().hex}"
            try:
                partial.write_bytes(content)
                sync(partial)
                target.hardlink_to(partial)  # whole or not at all, and never over another
                sync(target.parent)
            except FileExistsError:
                return False
            finally:
                partial.unlink(missing_ok=True)
        return True

    def get(self, key: str, target: Path) -> None:
        with explained(f"Cannot read {self.root / key}"):
            shutil.copyfile(self._at(key), target)

    def read(self, key: str) -> bytes:
        with explained(f"Cannot read {self.root / key}"):
            return self._at(key).read_bytes()

    def size(self, key: str) -> int:
        with explained(f"Cannot read {self.root / key}"):
            return self._at(key).stat().st_size

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        with explained(f"Cannot read {self.root / key}"), self._at(key).open("rb") as stream:
            stream.seek(start)
            return stream.read(stop - start)

    def keys(self, prefix: str) -> list[str]:
        base = self.root / prefix.rpartition("/")[0]
        with explained(f"Cannot list {self.root}"):
            found = [path.relative_to(self.root).as_posix() for path in _files_below(base)]
        return sorted(key for key in found if key.startswith(prefix))

    def delete(self, keys: list[str]) -> None:
        with explained(f"Cannot delete below {self.root}"):
            for key in keys:
                (self._folder_of(key) / Path(key).name).unlink(missing_ok=True)
            for folder in {self._folder_of(key) for key in keys} - {self.root}:
                _drop_if_empty(folder)


def _files_below(base: Path) -> Iterator[Path]:
    """Every file, but what another process removes meanwhile, and what is in folders that nobody may read."""

    def judged(error: OSError) -> None:
        if not isinstance(error, (FileNotFoundError, NotADirectoryError, PermissionError)):
            raise error

    for folder, _, names in os.walk(base, onerror=judged):
        yield from (path for path in (Path(folder, name) for name in names) if path.is_file())


def _drop_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError as error:
        # filled, or removed by another process meanwhile
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
            raise


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Raise ServiceError for an OSError: `what` cannot be done, and why; NotThere where a file is missing."""
    try:
        yield
    except OSError as error:
        kind = NotThere if isinstance(error, FileNotFoundError) else ServiceError
        raise kind(f"{what}: {error.strerror or error}. Check the path, its permissions and the disk.") from error


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
