"""Data sets to stage: in chunks small enough that a test has many, behind a store that counts."""

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path

from pipelines.data.manifest import MANIFEST, STAMP
from pipelines.data.seal import sealed
from pipelines.storage import FolderStore

CHUNK = 1 << 18


def small_chunks(built: Path, to: Path, name: str = "square") -> Path:
    """A copy of a built data set in chunks of `CHUNK` bytes, under a name of its own."""
    shutil.copytree(built, to, ignore=shutil.ignore_patterns(STAMP))
    tree = manifest_tree(to)
    for split, entry in tree["splits"].items():
        digests = chunk_digests(to / f"{split}.beton")
        (to / f"{split}.beton.chunks").write_bytes(digests)
        entry["chunks"] = {"size": CHUNK, "sha256": hashlib.sha256(digests).hexdigest()}
    (to / MANIFEST).write_bytes(sealed(tree | {"name": name}))
    return to


def manifest_tree(folder: Path) -> dict:
    tree = json.loads((folder / MANIFEST).read_text())
    del tree["checksum"]
    return tree


def chunk_digests(path: Path) -> bytes:
    content = path.read_bytes()
    return b"".join(hashlib.sha256(content[start : start + CHUNK]).digest() for start in range(0, len(content), CHUNK))


def without_chunks(folder: Path) -> Path:
    """The data set as versions before chunks wrote it."""
    tree = manifest_tree(folder) | {"format": 1}
    for split in tree["splits"]:
        del tree["splits"][split]["chunks"]
        (folder / f"{split}.beton.chunks").unlink()
    (folder / MANIFEST).write_text(json.dumps(tree))
    return folder


def flip(path: Path, offset: int) -> None:
    """Change one byte, and with it the file's time."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))


class CountingStore(FolderStore):
    """A folder whose reads are noted; `before` may spoil one."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.ranges: list[tuple[str, int]] = []
        self.reads: list[str] = []
        self.before = lambda key, start, content: content
        self._lock = threading.Lock()

    def read(self, key):
        self.reads.append(key)
        return super().read(key)

    def read_range(self, key, start, stop):
        with self._lock:
            self.ranges.append((key, start))
        return self.before(key, start, super().read_range(key, start, stop))
