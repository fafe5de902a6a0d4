"""One file of a store on its way into a folder of this machine, chunk by chunk, in parallel, from where it was cut."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipelines.data.chunks import Chunks
from pipelines.errors import ServiceError
from pipelines.faults import fault_point
from pipelines.progress import Progress
from pipelines.storage import Store

_R = TypeVar("_R")
_THREADS = 8
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT
_ANEW = os.O_WRONLY | os.O_TRUNC | os.O_CREAT
_TRIES = 2


def again(store: Store) -> str:
    """What to do about a damaged data set in a store."""
    return f"Upload the data set again: `agmm data push FOLDER {store.uri} --overwrite`."


@dataclass(frozen=True)
class Download:
    """File `key` of `store`, in `path` once it is whole; until then in `partial`, with a note of each chunk written.

    What the note says is believed for files without digests only: of the others, chunks are hashed before they count.
    """

    store: Store
    key: str
    path: Path
    chunks: Chunks

    @property
    def partial(self) -> Path:
        """Where the file grows; it has its full length from the start."""
        return self.path.with_name(f"{self.key}.partial")

    @property
    def _note(self) -> Path:
        return self.path.with_name(f"{self.key}.done")

    def missing(self) -> list[int]:
        """Chunks that are not here, or not right. A file that should be whole and is not becomes a partial one."""
        whole = self.path.exists()
        there = self.path if whole else self.partial
        candidates = list(range(len(self.chunks))) if whole else self._noted()
        right = self._right(there, candidates) if candidates else []
        if whole and (len(right) < len(self.chunks) or there.stat().st_size != self.chunks.length):
            with _opened(self._note, _ANEW) as note:
                os.write(note, "".join(f"{index}\n" for index in right).encode())
            self.path.rename(self.partial)
        return sorted(set(range(len(self.chunks))) - set(right))

    def _noted(self) -> list[int]:
        if not (self.partial.exists() and self._note.exists()):
            return []
        # After a power cut a line may be another chunk's number: its chunk is hashed, or else the file as a whole is.
        lines = self._note.read_text().split("\n")[:-1]
        return sorted({int(line) for line in lines if line.isdecimal() and int(line) < len(self.chunks)})

    def _right(self, path: Path, candidates: list[int]) -> list[int]:
        if not self.chunks.digests:
            return candidates
        total = len(candidates) * self.chunks.size
        with _opened(path, os.O_RDONLY) as file, Progress(total, f"checking {path.name}", unit="B") as progress:
            found = []
            with closing(_in_parallel(lambda index: (index, self._fits(file, index)), candidates)) as results:
                for index, right in results:
                    progress.advance(self.chunks.size)
                    found += [index] if right else []
        return found

    def _fits(self, file: int, index: int) -> bool:
        start, stop = self.chunks.span(index)
        try:
            return self.chunks.fits(index, os.pread(file, stop - start, start))
        except OSError:  # a bad place of the disk, which writing may well cure
            return False

    def reserve(self) -> None:
        """Give the partial file its full length."""
        if not self.path.exists():
            with _opened(self.partial, _APPEND) as file:
                os.truncate(file, self.chunks.length)

    def forget(self) -> None:
        """Begin from nothing."""
        for path in (self.path, self.partial, self._note):
            path.unlink(missing_ok=True)

    def fetch(self, missing: list[int], progress: Progress) -> None:
        """Fetch these chunks, and give the file its name once it is on the disk. Raises ServiceError and OSError."""
        if self.path.exists():
            return
        if missing:
            self._check_origin()
        with _opened(self.partial, os.O_RDWR) as file, _opened(self._note, _APPEND) as note:
            with closing(_in_parallel(lambda index: self._fetch_one(file, note, index), missing)) as results:
                for count in results:
                    progress.advance(count)
            os.fsync(file)
        self.partial.rename(self.path)
        self._note.unlink()

    def _check_origin(self) -> None:
        if (found := self.store.size(self.key)) != self.chunks.length:
            raise ServiceError(
                f"{self.store.uri}/{self.key} is damaged: it has {found} bytes, its manifest says "
                f"{self.chunks.length}. {again(self.store)}"
            )

    def _fetch_one(self, file: int, note: int, index: int) -> int:
        content = self.read(index)
        fault_point("data.stage.chunk")
        start, _ = self.chunks.span(index)
        written = 0
        while written < len(content):
            written += os.pwrite(file, memoryview(content)[written:], start + written)
        os.write(note, f"{index}\n".encode())  # appended in one piece, whichever thread is at it
        return len(content)

    def read(self, index: int) -> bytes:
        """A chunk as the store has it, checked. Raises ServiceError where it is another, twice."""
        start, stop = self.chunks.span(index)
        for _ in range(_TRIES):
            content = self.store.read_range(self.key, start, stop)
            if self.chunks.fits(index, content):
                return content
        raise ServiceError(
            f"{self.store.uri}/{self.key} is damaged: bytes {start} to {stop - 1} came {_TRIES} times, and are not "
            f"those of its manifest. {again(self.store)}"
        )

    def check(self, progress: Progress) -> None:
        """Read all of the file in the store. Raises ServiceError where it is not the manifest's."""
        self._check_origin()
        with closing(_in_parallel(lambda index: len(self.read(index)), list(range(len(self.chunks))))) as results:
            for count in results:
                progress.advance(count)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    # a cache may be where others write too: a link that they have planted is not followed
    file = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        yield file
    finally:
        os.close(file)


def _in_parallel(work: Callable[[int], _R], indices: list[int]) -> Generator[_R, None, None]:
    """Results as they come; at the first error, or when it is closed, what has not begun is dropped."""
    with ThreadPoolExecutor(_THREADS) as pool:
        futures: list[Future[_R]] = [pool.submit(work, index) for index in indices]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
