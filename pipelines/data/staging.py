"""Data sets of other machines on this one: copied once per node into a cache, checked chunk by chunk, mended there."""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.data import cache
from pipelines.data.chunks import chunk_list
from pipelines.data.download import Download, again
from pipelines.data.manifest import MANIFEST, file_digest, is_stamped, parse_manifest, write_stamp
from pipelines.data.origin import Origin, open_origin
from pipelines.errors import ServiceError, UserError
from pipelines.faults import fault_point
from pipelines.home import data_address
from pipelines.progress import Progress, Say
from pipelines.storage import sync


def data_folder(uri: str | None, dataset: str, say: Say = lambda _: None) -> Path:
    """The folder of a built data set: at `uri`, staged where that is an address, or the home's own place for it."""
    return stage(data_address(uri, dataset), say=say)


def stage(uri: str, *, say: Say = lambda _: None, key: str | None = None) -> Path:
    """The local folder of the data set at `uri`, all of it there and right.

    A folder's path is itself, and its files are not looked at. What is at `s3://bucket/prefix`, or `file://` as on a
    file server, is copied into the node's cache, unless it is there: several processes copy it once. What was fetched
    stays when the process dies; what is damaged in the cache is fetched again, once. `key` asks for the data set of
    that key, the name of the folder that this returned somewhere else; the origin is not asked if the cache has it.

    Raises:
        UserError: where there is no such data set, its manifest is damaged, or the origin has another by now.
        ServiceError: where the origin does not answer or is damaged, or the cache cannot be written, or is full.

    """
    if "://" not in uri:
        return Path(uri).absolute()
    origin = None if key else open_origin(uri)
    folder = cache.cache_dir() / (origin.key if origin else str(key))
    with _explained(uri, folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        cache.hold(folder)
        if not _is_whole(folder):
            with cache.alone(folder, say):
                if not _is_whole(folder):
                    _fill(origin or _same_origin(uri, folder.name), folder, say)
    return folder


def staged(uri: str, folder: str, say: Say = lambda _: None) -> Path:
    """On a worker's node, the data set that the driver has in `folder` on its own: `uri` is where both have it from."""
    there = Path(folder)
    if "://" not in uri:
        return there
    if _is_whole(there):  # the driver's own node, or one that sees its cache
        with _explained(uri, there):
            cache.hold(there)
        if _is_whole(there):  # nobody has removed it meanwhile
            return there
    return stage(uri, say=say, key=there.name)


def is_staged(key: str) -> bool:
    """Whether the data set of that key is in this node's cache, whole."""
    return _is_whole(cache.cache_dir() / key)


def _same_origin(uri: str, key: str) -> Origin:
    origin = open_origin(uri, proven=True)  # it is where `key` comes from
    if origin.key != key:
        raise UserError(
            f"{uri} has another data set than when this run started: its {MANIFEST} has SHA-256 {origin.key}, not "
            f"{key}. Put the old one back, or resume with data.uri where it is."
        )
    return origin


def _is_whole(folder: Path) -> bool:
    try:
        content = (folder / MANIFEST).read_bytes()
        same = hashlib.sha256(content).hexdigest() == folder.name
        return same and is_stamped(folder, parse_manifest(content, str(folder / MANIFEST)))
    except (OSError, UserError):
        return False


@contextmanager
def _explained(uri: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error))
        raise ServiceError(
            f"Cannot stage {uri} in {folder}: {why}. What was fetched stays, and the next try goes on from there. Free "
            "some space, or set AGMM_CACHE to a folder of this node that can be written."
        ) from error


def _fill(origin: Origin, folder: Path, say: Say) -> None:
    """Bring every file of the folder to what the origin's manifest says, then write the manifest."""
    folder.mkdir(exist_ok=True)
    if folder.is_symlink():
        raise ServiceError(f"{folder} is a link, and a cache has none. Remove it, or set AGMM_CACHE to another folder.")
    downloads = origin.downloads(folder)
    for split, download in downloads.items():
        _drop_if_wrong(download, origin.manifest.splits[split].sha256, say)
    there = {split for split, download in downloads.items() if download.path.exists()}
    missing = {split: download.missing() for split, download in downloads.items()}
    damaged = {split for split in there if not downloads[split].path.exists()}
    for split in sorted(damaged):
        say(f"{downloads[split].path} is damaged: fetching {len(missing[split])} of its chunks again")
    with cache.room(folder, origin.bytes, say):
        for download in downloads.values():
            download.reserve()
    _fetch(origin, downloads, missing, say)
    for split in damaged:
        _check_mended(downloads[split])
    _commit(origin, folder, downloads)


def _drop_if_wrong(download: Download, sha256: str, say: Say) -> None:
    """A file without digests of its chunks is right or wrong as a whole."""
    if download.chunks.digests or not download.path.exists() or file_digest(download.path) == sha256:
        return
    say(f"{download.path} is damaged: fetching all of it again, for its manifest lists no chunks")
    download.forget()


def _fetch(origin: Origin, downloads: dict[str, Download], missing: dict[str, list[int]], say: Say) -> None:
    wanted = sum(
        stop - start
        for split, download in downloads.items()
        for start, stop in map(download.chunks.span, missing[split])
    )
    if wanted:
        say(f"staging {origin.store.uri}: {cache.size(wanted)} of {cache.size(origin.bytes)}")
    started = time.perf_counter()
    with Progress(wanted, f"staging {origin.manifest.name}", unit="B") as progress:
        for split, download in downloads.items():
            download.fetch(missing[split], progress)
            if not download.chunks.digests:
                _check_whole(download, origin.manifest.splits[split].sha256, progress)
    if wanted:
        took = time.perf_counter() - started
        say(f"staged {origin.store.uri} in {took:.1f} s, {wanted / took / 1e6:.0f} MB/s")


def _check_whole(download: Download, sha256: str, progress: Progress) -> None:
    """A file without digests of its chunks: fetched anew, once, if it is not right."""
    if file_digest(download.path) == sha256:
        return
    download.forget()
    download.reserve()
    download.fetch(list(range(len(download.chunks))), progress)
    if file_digest(download.path) != sha256:
        download.forget()
        raise ServiceError(
            f"{download.store.uri}/{download.key} is damaged: it came twice, and its SHA-256 is not the manifest's. "
            f"{again(download.store)}"
        )


def _check_mended(download: Download) -> None:
    if download.chunks.digests and (wrong := download.missing()):
        raise ServiceError(
            f"{download.path} was mended and is damaged again, in {len(wrong)} chunks. Check the disk, or set "
            "AGMM_CACHE to a folder on another."
        )


def _write(path: Path, content: bytes) -> None:
    """A small file in a cache that others may write to: a new one, whatever was there."""
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        file.write(content)
    sync(path)


def _commit(origin: Origin, folder: Path, downloads: dict[str, Download]) -> None:
    for split, download in downloads.items():
        if origin.manifest.splits[split].chunks:
            _write(folder / chunk_list(download.key), download.chunks.digests)
    fault_point("data.stage.commit")
    written = folder / f"{MANIFEST}.partial"
    _write(written, origin.content)
    written.rename(folder / MANIFEST)
    write_stamp(folder, origin.manifest)
    sync(folder)
