"""What makes a folder a data set: `manifest.json` beside the two `.beton` files, and the checks against it.

A `.beton` has no checksum and no mark of completion; the manifest, written last, is both.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.data.beton import BetonReader
from pipelines.data.chunks import Chunks, chunk_list
from pipelines.data.events import SplitBy
from pipelines.data.samples import SPLITS
from pipelines.data.seal import is_sealed, sealed
from pipelines.errors import UserError
from pipelines.names import NAME
from pipelines.progress import Progress, Say

# 1: images. 2: event frames. 3: a checksum of the manifest itself, and chunks. 4: whether images were made smaller.
# All are read, the last is written.
FORMAT, _FIRST_WITH_CHECKSUM = 4, 3
MANIFEST = "manifest.json"
STAMP = ".verified.json"


_BLOCK = 1 << 22
_AGAIN = "Copy it again whole, or build it again with `agmm data build`."


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ChunkManifest(_Part):
    """The chunks of one `.beton` file, whose digests are listed in a file beside it."""

    size: int = Field(ge=1, description="bytes of a chunk; the last may have fewer")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the list of the chunks' digests")


class SplitManifest(_Part):
    """One `.beton` file. Sizes are (height, width) in pixels."""

    count: int = Field(ge=1)
    count_by_class: tuple[int, ...]
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the file")
    bytes: int = Field(ge=1, description="length of the file")
    content_digest: str = Field(
        pattern="^[0-9a-f]{64}$", description="SHA-256 over labels and stored images in order, whatever the layout"
    )
    smallest: tuple[int, int] = Field(description="least height and least width")
    largest: tuple[int, int] = Field(description="greatest height and greatest width")
    converted: dict[str, int] = Field(description="images that were not RGB, by the mode they came in")
    skipped: dict[str, str] = Field(description="images left out, with the reason")
    chunks: ChunkManifest | None = Field(None, description="absent before format 3")


class FramesManifest(_Part):
    """What recordings of events became."""

    shape: tuple[int, int, int, int] = Field(description="(T, 2, H, W) of every sample")
    by: SplitBy = Field(description="frames of equal event count, or of equal time")
    settings: dict[str, float] = Field({}, description="of the simulation, where images were turned into events")


class ReencodedManifest(_Part):
    """Large images were made smaller when the data set was built."""

    short_side: int = Field(ge=1, description="pixels; images with a longer one were resized to it")
    quality: int = Field(ge=1, le=100, description="of the JPEG files that these became")


class Manifest(_Part):
    """A whole data set."""

    format: int
    name: str = Field(pattern=NAME)
    classes: tuple[str, ...] = Field(min_length=1)
    builder: str
    source_kind: str
    splits: dict[str, SplitManifest]
    frames: FramesManifest | None = Field(None, description="of a data set of events; absent for images")
    reencoded: ReencodedManifest | None = Field(None, description="absent where images are stored as they came")

    @property
    def digest(self) -> str:
        """SHA-256 that names this data set's content: classes and both splits' content digests."""
        parts = [list(self.classes), *(self.splits[split].content_digest for split in SPLITS)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def beton_path(folder: str | Path, split: str) -> Path:
    """The file of a split."""
    return Path(folder) / f"{split}.beton"


def load_manifest(folder: str | Path, *, expect_name: str | None = None, expect_classes: int | None = None) -> Manifest:
    """The manifest of a data set's folder, without looking into the files.

    Raises UserError when there is none (an unfinished build), when it is damaged or of a newer format, or when it is of
    another data set than `expect_name` or has another number of classes than `expect_classes`.
    """
    path = Path(folder) / MANIFEST
    manifest = parse_manifest(_content(path), str(path))
    if expect_name is not None and manifest.name != expect_name:
        raise UserError(
            f"{folder} holds data set {manifest.name!r}, not {expect_name!r}. Set data.uri to the folder of "
            f"{expect_name!r}, or data.dataset={manifest.name}."
        )
    if expect_classes is not None and len(manifest.classes) != expect_classes:
        raise UserError(
            f"{folder} has {len(manifest.classes)} classes, not {expect_classes}. "
            f"Set model.num_classes={len(manifest.classes)}."
        )
    return manifest


def _content(path: Path) -> bytes:
    if not path.parent.is_dir():
        raise UserError(f"No data set at {path.parent}. Build it with `agmm data build SOURCE --out {path.parent}`.")
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} has no {MANIFEST}: not a data set, or its build did not finish.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}. {_AGAIN}") from error


def parse_manifest(content: bytes, where: str) -> Manifest:
    """The manifest in a file's content. Raises UserError, which names `where`, for damage or a newer format."""
    try:
        tree = json.loads(content)
    except ValueError as error:
        raise UserError(f"{where} cannot be read: {error}. {_AGAIN}") from error
    came = tree.get("format") if isinstance(tree, dict) else None
    if isinstance(came, int) and came > FORMAT:
        raise UserError(f"{where} has format {came}; this version reads up to {FORMAT}. Update agmm.")
    if isinstance(came, int) and came >= _FIRST_WITH_CHECKSUM and not is_sealed(content, tree.pop("checksum", None)):
        raise UserError(f"{where} is damaged, or was edited: its checksum is not that of its content. {_AGAIN}")
    return _validated(tree, where)


def _validated(tree: Any, where: str) -> Manifest:
    try:
        manifest = Manifest.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{where} is no manifest: {place}: {first['msg']}. {_AGAIN}") from error
    if set(manifest.splits) != set(SPLITS):
        raise UserError(f"{where} lists splits {', '.join(manifest.splits)}, not {', '.join(SPLITS)}. {_AGAIN}")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` and wait until it is on disk."""
    with (folder / MANIFEST).open("wb") as out:
        out.write(sealed(manifest.model_dump(mode="json", exclude_none=True)))
        out.flush()
        os.fsync(out.fileno())


def file_digest(path: Path) -> str:
    """SHA-256 of a file, with progress on stderr."""
    digest = hashlib.sha256()
    with path.open("rb") as stream, Progress(path.stat().st_size, f"checking {path.name}", unit="B") as progress:
        while block := stream.read(_BLOCK):
            digest.update(block)
            progress.advance(len(block))
    return digest.hexdigest()


def content_digest(reader: BetonReader) -> str:
    """SHA-256 over labels and stored images in sample order."""
    digest = hashlib.sha256()
    for part in reader.content():
        digest.update(part)
    return digest.hexdigest()


def verify(folder: str | Path, say: Say = lambda _: None) -> Manifest:
    """Check every hash, the structure of both files and the counts against the manifest. Raises UserError."""
    manifest = load_manifest(folder)
    for split in SPLITS:
        path, entry = beton_path(folder, split), manifest.splits[split]
        _check_file(path, entry)
        if entry.chunks is not None:
            _check_chunks(folder, split, entry)
        reader = BetonReader(path)
        counts = np.bincount(reader.labels, minlength=len(manifest.classes)).tolist()
        if len(reader) != entry.count or counts != list(entry.count_by_class):
            raise UserError(f"{path} holds other images than {MANIFEST} says. {_AGAIN}")
        if content_digest(reader) != entry.content_digest:
            raise UserError(f"{path} holds other bytes than {MANIFEST} says. {_AGAIN}")
        say(f"{path}: {entry.count} samples, whole")
    return manifest


def chunks_from(entry: SplitManifest, digests: bytes) -> Chunks | None:
    """A file's chunks, by the content of the list of their digests; None where it is not the manifest's."""
    assert entry.chunks is not None, "a list belongs to a manifest that names one"
    chunks = Chunks(entry.bytes, entry.chunks.size, digests)
    whole = hashlib.sha256(digests).hexdigest() == entry.chunks.sha256 and chunks.complete
    return chunks if whole else None


def _check_chunks(folder: str | Path, split: str, entry: SplitManifest) -> None:
    path = Path(folder) / chunk_list(f"{split}.beton")
    try:
        whole = chunks_from(entry, path.read_bytes()) is not None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}. {_AGAIN}") from error
    if not whole:
        raise UserError(f"{path} is damaged: its SHA-256 is not the manifest's. {_AGAIN}")


def _check_size(path: Path, entry: SplitManifest) -> os.stat_result:
    try:
        state = path.stat()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}. {_AGAIN}") from error
    if state.st_size != entry.bytes:
        raise UserError(f"{path} has {state.st_size} bytes; its manifest says {entry.bytes}: not whole. {_AGAIN}")
    return state


def _check_file(path: Path, entry: SplitManifest) -> None:
    _check_size(path, entry)
    if file_digest(path) != entry.sha256:
        raise UserError(f"{path} is damaged: its SHA-256 is not the manifest's. {_AGAIN}")


def ensure_verified(
    folder: str | Path,
    *,
    expect_name: str | None = None,
    expect_classes: int | None = None,
    say: Say = lambda _: None,
) -> Manifest:
    """The manifest of a folder whose files are what it says.

    Files are hashed the first time they are seen; after that, length and time of change against a stamp beside them
    are enough. Where the stamp cannot be written, each call hashes. Raises UserError like `load_manifest` and `verify`.
    """
    manifest = load_manifest(folder, expect_name=expect_name, expect_classes=expect_classes)
    if is_stamped(folder, manifest):
        return manifest
    say(f"checking {folder}, once")
    for split in SPLITS:
        _check_file(beton_path(folder, split), manifest.splits[split])
    # A read-only folder is hashed each time: slow, never wrong.
    with suppress(OSError):
        write_stamp(folder, manifest)
    return manifest


def is_stamped(folder: str | Path, manifest: Manifest) -> bool:
    """Whether the files have the length and time of change at which they were right. Raises UserError for a length."""
    return _read_stamp(Path(folder)) == _state(folder, manifest)


def _state(folder: str | Path, manifest: Manifest) -> dict[str, dict[str, Any]]:
    seen = {split: _check_size(beton_path(folder, split), entry) for split, entry in manifest.splits.items()}
    return {
        split: {"sha256": manifest.splits[split].sha256, "bytes": state.st_size, "mtime_ns": state.st_mtime_ns}
        for split, state in seen.items()
    }


def _read_stamp(folder: Path) -> Any:
    try:
        return json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_stamp(folder: str | Path, manifest: Manifest) -> None:
    """Note that the files are right as they are now. Raises OSError where the folder cannot be written."""
    # Written aside and renamed: the workers of one machine may all be the first.
    temporary = Path(folder) / f"{STAMP}.{os.getpid()}"
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("x", encoding="utf-8") as file:  # never through a link that lies there
            file.write(json.dumps(_state(folder, manifest)))
        temporary.replace(Path(folder) / STAMP)
    finally:
        temporary.unlink(missing_ok=True)
