"""A large file in chunks, each with a SHA-256 of its own, so that a part can be checked and fetched again alone.

The digests of a file's chunks, 32 bytes each, lie one after the other beside it: 572 kB for 150 GB. The manifest holds
the SHA-256 of that list, and so vouches for every chunk.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pipelines.progress import Progress

CHUNK = 8 << 20
_DIGEST = 32


def chunk_list(name: str) -> str:
    """Name of the list of digests of the chunks of file `name`."""
    return f"{name}.chunks"


@dataclass(frozen=True)
class Chunks:
    """A file of `length` bytes in chunks of `size`; `digests` has 32 bytes a chunk, or is empty if none are known."""

    length: int
    size: int = CHUNK
    digests: bytes = b""

    def __len__(self) -> int:
        return -(-self.length // self.size)

    @property
    def complete(self) -> bool:
        """Whether there is a digest of every chunk."""
        return len(self.digests) == _DIGEST * len(self)

    def span(self, index: int) -> tuple[int, int]:
        """First byte of a chunk, and the byte after its last."""
        return index * self.size, min((index + 1) * self.size, self.length)

    def fits(self, index: int, content: bytes) -> bool:
        """Whether `content` is the chunk, as far as is known: length, and digest where there is one."""
        start, stop = self.span(index)
        if len(content) != stop - start:
            return False
        return not self.digests or hashlib.sha256(content).digest() == self._digest(index)

    def _digest(self, index: int) -> bytes:
        return self.digests[index * _DIGEST : (index + 1) * _DIGEST]


def hash_file(path: Path) -> tuple[str, bytes]:
    """SHA-256 of a file in hexadecimal, and the digests of its chunks; with progress on stderr."""
    whole, digests = hashlib.sha256(), bytearray()
    with path.open("rb") as stream, Progress(path.stat().st_size, f"checking {path.name}", unit="B") as progress:
        while chunk := stream.read(CHUNK):
            whole.update(chunk)
            digests += hashlib.sha256(chunk).digest()
            progress.advance(len(chunk))
    return whole.hexdigest(), bytes(digests)
