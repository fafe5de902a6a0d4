"""A source becomes a data set: `train.beton`, `val.beton` and `manifest.json` in one folder, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np

from pipelines.data.beton import PAGE, BetonWriter, sample_head
from pipelines.data.chunks import CHUNK, chunk_list, hash_file
from pipelines.data.events import BrokenEvents, Events, FrameRule, to_frames
from pipelines.data.images import BrokenImage, Prepared, prepare, strict_decoding
from pipelines.data.layout import FRAMES
from pipelines.data.manifest import (
    FORMAT,
    MANIFEST,
    STAMP,
    ChunkManifest,
    FramesManifest,
    Manifest,
    ReencodedManifest,
    SplitManifest,
    beton_path,
    write_manifest,
)
from pipelines.data.samples import SPLITS, Sample, Source
from pipelines.errors import ServiceError, UserError
from pipelines.progress import Progress, Say
from pipelines.storage import sync

OnError = Literal["fail", "skip"]
_Result = Prepared | BrokenImage | BrokenEvents

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BETONS = [f"{split}.beton" for split in SPLITS]
_OURS = frozenset({MANIFEST, STAMP, *_BETONS, *map(chunk_list, _BETONS)})
# Images in flight per thread: enough to keep all busy, few enough to stay small in memory.
_AHEAD = 8


def build(
    source: Source,
    out: str | Path,
    *,
    name: str | None = None,
    on_error: OnError = "fail",
    overwrite: bool = False,
    threads: int | None = None,
    say: Say = lambda _: None,
) -> Manifest:
    """Decode every image (or bin every recording) of `source`, write the data set to `out`, and return its manifest.

    The same source gives the same bytes, whatever `threads` (default: the processors of this machine). `on_error`
    "skip" leaves broken files out and names them in the manifest; "fail" stops at the first. `overwrite` replaces a
    data set that is there, after the new one is whole. Nothing stays of a build that does not finish.

    Raises UserError for a broken file, an existing `out` or an address that is not a folder; ServiceError when the
    disk fails or is full.
    """
    target = _target(out, overwrite)
    with _disk_errors(target), strict_decoding(), _staging(target) as staging:
        _check_space(target, source.bytes_needed)
        workers = threads or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0])
        splits = {split: _build_split(source, split, staging, on_error, workers) for split in SPLITS}
        manifest = Manifest(
            format=FORMAT,
            name=name or source.name,
            classes=source.classes,
            builder=f"agmm {_version()}",
            source_kind=source.kind,
            splits=splits,
            frames=_frames(source),
            reencoded=ReencodedManifest(**asdict(source.reencoding)) if source.reencoding else None,
        )
        write_manifest(staging, manifest)
        sync(staging)
        _publish(staging, target)
    _summarise(manifest, source.unit, target, say)
    return manifest


def _frames(source: Source) -> FramesManifest | None:
    if source.frames is None:
        return None
    return FramesManifest(shape=source.frames.shape, by=source.frames.by, settings=dict(source.settings))


def _version() -> str:
    try:
        return metadata.version("agmm")
    except metadata.PackageNotFoundError:
        return "unknown"


def _target(out: str | Path, overwrite: bool) -> Path:
    address = str(out).removeprefix("file://")
    if "://" in address:
        raise UserError(
            f"--out {out} is not a folder. Build into a folder of this machine, and `agmm data push` it from there."
        )
    try:
        target = Path(address).expanduser().resolve()
        exists = target.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long, a user who is not there, a loop of links
        raise UserError(f"--out {out} is no path of this machine: {error}.") from error
    if exists and not overwrite:
        raise UserError(f"{target} exists already. Choose another folder, or pass --overwrite to replace the data set.")
    if exists and not (target.is_dir() and _OURS.issuperset(entry.name for entry in target.iterdir())):
        raise UserError(f"{target} holds other files than a data set: it is not overwritten. Choose another folder.")
    return target


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = "the disk is full" if error.errno in _FULL else (error.strerror or str(error))
        raise ServiceError(
            f"Could not write {target}: {why}. Nothing of it was kept. Free some space or choose another folder."
        ) from error


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A folder beside the target, on the same disk so that a rename completes it; gone whatever happens."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.partial"
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_space(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    needed += 2 * PAGE
    if free < needed:
        raise ServiceError(
            f"{target.parent} has {free / 1e9:.2f} GB free; the data set needs about {needed / 1e9:.2f} GB. Free some "
            "space or choose another folder."
        )


@dataclass
class _Tally:
    """What a manifest says of a split, gathered while its images pass."""

    classes: int
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    labels: Counter[int] = field(default_factory=Counter)
    converted: Counter[str] = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)

    def add(self, sample: Sample, image: Prepared) -> None:
        size = len(image.data) if isinstance(image.data, bytes) else image.data.nbytes
        self.digest.update(sample_head(sample.label, image.mode, image.height, image.width, size))
        self.digest.update(image.data if isinstance(image.data, bytes) else np.ascontiguousarray(image.data).data)
        self.labels[sample.label] += 1
        self.sizes.append((image.height, image.width))
        if image.converted is not None:
            self.converted[image.converted] += 1


def _build_split(source: Source, split: str, folder: Path, on_error: OnError, threads: int) -> SplitManifest:
    samples, path = source.splits[split], beton_path(folder, split)
    tally, skipped = _Tally(len(source.classes)), dict[str, str]()
    writer = BetonWriter(path, len(samples), source.frames.shape if source.frames else None)
    try:
        with (
            closing(_prepare_all(samples, source.frames, threads)) as prepared,
            Progress(len(samples), f"building {split}", unit=f" {source.unit}s") as progress,
        ):
            for sample, result in prepared:
                if isinstance(result, Prepared):
                    tally.add(sample, result)
                    writer.add(sample.label, result.mode, result.height, result.width, result.data)
                else:
                    skipped[sample.name] = _broken(source, sample, result, on_error)
                progress.advance()
        _check_classes(source, split, tally)
        writer.finish()
    finally:
        writer.close()
    return _describe(path, tally, skipped)


def _prepare_all(
    samples: Sequence[Sample], rule: FrameRule | None, threads: int
) -> Generator[tuple[Sample, _Result], None, None]:
    """Samples in order with what to store of them, prepared in parallel (decoders let go of the interpreter)."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[tuple[Sample, Future[_Result]]] = deque()
        try:
            for sample in samples:
                pending.append((sample, pool.submit(_prepare_one, sample, rule)))
                if len(pending) > threads * _AHEAD:
                    first, result = pending.popleft()
                    yield first, result.result()
            while pending:
                first, result = pending.popleft()
                yield first, result.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _prepare_one(sample: Sample, rule: FrameRule | None) -> _Result:
    try:
        payload = sample.load()
        if isinstance(payload, Events):
            assert rule is not None, "a source of recordings says how they become frames"
            return Prepared(FRAMES, rule.size, rule.size, to_frames(payload, rule))
        return prepare(payload)
    except (BrokenImage, BrokenEvents) as error:
        return error
    except OSError as error:
        return BrokenImage(f"cannot be read: {error.strerror or error}")


def _broken(source: Source, sample: Sample, error: ValueError, on_error: OnError) -> str:
    if on_error == "fail":
        raise UserError(
            f"{sample.name} of {source.name} is not a whole {source.unit}: {error}. Replace or remove the file, or "
            "pass --on-error skip to leave such files out (the manifest names them)."
        )
    return str(error)


def _check_classes(source: Source, split: str, tally: _Tally) -> None:
    empty = [name for label, name in enumerate(source.classes) if not tally.labels[label]]
    if empty:
        raise UserError(
            f"{split} of {source.name} has no usable {source.unit} of: {', '.join(empty[:8])}. Add some, or remove the "
            "class."
        )


def _describe(path: Path, tally: _Tally, skipped: dict[str, str]) -> SplitManifest:
    sizes = np.array(tally.sizes)
    sha256, digests = hash_file(path)
    path.with_name(chunk_list(path.name)).write_bytes(digests)
    return SplitManifest(
        count=len(sizes),
        count_by_class=tuple(tally.labels[label] for label in range(tally.classes)),
        sha256=sha256,
        bytes=path.stat().st_size,
        content_digest=tally.digest.hexdigest(),
        smallest=(int(sizes[:, 0].min()), int(sizes[:, 1].min())),
        largest=(int(sizes[:, 0].max()), int(sizes[:, 1].max())),
        converted=dict(sorted(tally.converted.items())),
        skipped=skipped,
        chunks=ChunkManifest(size=CHUNK, sha256=hashlib.sha256(digests).hexdigest()),
    )


def _publish(staging: Path, target: Path) -> None:
    """Give the finished folder its name; an older data set steps aside first and comes back if that fails."""
    aside = staging.with_suffix(".replaced")
    replaces = target.exists()
    if replaces:
        target.rename(aside)
    try:
        staging.rename(target)
    except OSError:
        if replaces:
            aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
    sync(target.parent)


def _summarise(manifest: Manifest, unit: str, target: Path, say: Say) -> None:
    for split, entry in manifest.splits.items():
        notes = [f"{count} converted from {mode}" for mode, count in entry.converted.items()]
        notes += [f"{len(entry.skipped)} skipped"] if entry.skipped else []
        say(f"{split}: {entry.count} {unit}s, {entry.bytes / 1e6:.1f} MB" + "".join(f", {note}" for note in notes))
    say(f"data set {manifest.name}: {target}")
