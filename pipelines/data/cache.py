"""The cache of staged data sets on a node: where it is, who uses what of it, and how room is made in it.

Below the cache, each data set has a folder that is named by the SHA-256 of its manifest; `locks` has two files for
each. `KEY.lock` is held by who fills, mends or removes the folder; `KEY.use` is shared by all who read it, for as long
as their processes live, and its time is that of the last use.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pipelines.errors import ServiceError, UserError
from pipelines.progress import Say

_KEY = re.compile("[0-9a-f]{64}")
_LIMIT = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)
_SAY_EVERY_S = 60.0
_SPARE = 1 << 20  # for manifest, lists and notes
_held: dict[Path, int] = {}  # open files, whose locks the system lets go when the process ends, however it ends


@dataclass(frozen=True)
class Entry:
    """A data set in the cache. `bytes` is what it takes once it is whole, `allocated` what it takes now."""

    folder: Path
    bytes: int
    allocated: int
    used: float


def cache_dir() -> Path:
    """`AGMM_CACHE`, else the user's cache folder on this node, absolute.

    Not the home of a run: that may be a folder of one job, or of one node, and what it stages serves all.
    """
    if chosen := os.environ.get("AGMM_CACHE"):
        return Path(chosen).expanduser().absolute()
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise UserError("This user has no home folder for a cache. Set AGMM_CACHE to a folder of this node.") from error
    return (Path(base) / "agmm").absolute()


def cache_limit() -> int | None:
    """Bytes that the cache may take by `AGMM_CACHE_LIMIT` (50000000, 200GB, 1.5TiB); None without."""
    text = os.environ.get("AGMM_CACHE_LIMIT", "").strip()
    if not text:
        return None
    found = _LIMIT.fullmatch(text)
    if found is None:
        raise UserError(f"AGMM_CACHE_LIMIT is {text!r}. Write bytes, or a number with KB, MB, GB or TB, as in 200GB.")
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(unit.upper() or " "))


def entries(cache: Path) -> list[Entry]:
    """The data sets of the cache, the least recently used first; those that are not whole too."""
    folders = [path for path in cache.iterdir() if _KEY.fullmatch(path.name)] if cache.is_dir() else []
    return sorted(map(_entry, folders), key=lambda entry: entry.used)


def _entry(folder: Path) -> Entry:
    files = folder.iterdir() if folder.is_dir() else ()
    states = [state for path in files if (state := _stat(path))]
    use = _stat(_lock(folder, "use")) or _stat(folder)
    total, allocated = sum(state.st_size for state in states), sum(state.st_blocks * 512 for state in states)
    return Entry(folder, max(total, allocated), allocated, use.st_mtime if use else 0.0)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # another process has just renamed or removed it
        return None


def _lock(folder: Path, kind: str) -> Path:
    path = folder.parent / "locks" / f"{folder.name}.{kind}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def hold(folder: Path) -> None:
    """Keep a data set from being removed for as long as this process lives, and note the time of its use."""
    if folder not in _held:
        file = os.open(_lock(folder, "use"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(file, fcntl.LOCK_SH)
        _held[folder] = file
    os.utime(_lock(folder, "use"))


def let_go(folder: Path) -> None:
    """Allow a data set to be removed, as far as this process goes."""
    if folder in _held:
        os.close(_held.pop(folder))


@contextmanager
def alone(folder: Path, say: Say) -> Iterator[None]:
    """Only one process at a time fills a folder; the others wait, and say so."""
    lock, patience = FileLock(_lock(folder, "lock")), 0.0
    while not lock.is_locked:
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            there = size(_entry(folder).allocated)
            say(f"another process of this machine stages {folder}: waiting for it, {there} are there")
            patience = _SAY_EVERY_S
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Whether nobody fills or reads the folder; nobody can while this lasts."""
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(_lock(folder, "lock"), timeout=0))
            use = stack.enter_context(_lock(folder, "use").open("a"))
            fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (Timeout, BlockingIOError):
            yield False
        else:
            yield True


@contextmanager
def room(folder: Path, needed: int, say: Say) -> Iterator[None]:
    """See that `folder` may grow to `needed` bytes, within the limit and on the disk; the body lays claim to them.

    The claim is files of full length, sparse as yet. Data sets that no process uses are removed, the least recently
    used first, if that is enough. Raises ServiceError otherwise, and nothing is removed.
    """
    cache = folder.parent
    with FileLock(_lock(cache / "space", "lock")), ExitStack() as claims:
        here = _entry(folder).allocated
        others = [entry for entry in entries(cache) if entry.folder != folder]
        short = _short(cache, others, needed, here)
        leaving: list[Entry] = []
        for entry in others:
            if short - sum(gone.bytes for gone in leaving) > 0 and claims.enter_context(_claimed(entry.folder)):
                leaving.append(entry)
        if short > sum(gone.bytes for gone in leaving):
            raise ServiceError(_no_room(cache, others, leaving, needed, here))
        for entry in leaving:
            say(f"removing {entry.folder} from the cache, {size(entry.bytes)} unused, to make room")
            shutil.rmtree(entry.folder)
        yield


def _short(cache: Path, others: list[Entry], needed: int, here: int) -> int:
    """Bytes that must go before `needed` fit; 0 or less where they fit."""
    limit = cache_limit()
    over = sum(entry.bytes for entry in others) + needed - limit if limit is not None else 0
    return max(over, needed - here + _SPARE - _free(cache, others))


def _free(cache: Path, others: list[Entry]) -> int:
    """Bytes of the disk that nobody has, and that no other data set will need to become whole."""
    return shutil.disk_usage(cache).free - sum(entry.bytes - entry.allocated for entry in others)


def _no_room(cache: Path, others: list[Entry], leaving: list[Entry], needed: int, here: int) -> str:
    limit = cache_limit()
    used = sum(entry.bytes for entry in others)
    return (
        f"No room in {cache} for a data set of {size(needed)}: {size(max(0, needed - here))} are to come, the disk has "
        f"{size(_free(cache, others))} free, AGMM_CACHE_LIMIT is {'not set' if limit is None else size(limit)}, other "
        f"data sets take {size(used)}, of which {size(sum(entry.bytes for entry in leaving))} are unused. Free some "
        "space, raise the limit, or set AGMM_CACHE to a folder on a larger disk."
    )


def clear(cache: Path, say: Say) -> int:
    """Remove all data sets that no process uses; returns how many."""
    removed = 0
    for entry in entries(cache):
        with _claimed(entry.folder) as free:
            if free:
                shutil.rmtree(entry.folder)
                removed += 1
            else:
                say(f"{entry.folder} is in use and stays")
    return removed


def size(count: float) -> str:
    """Bytes for a person."""
    return f"{count / 1e9:.2f} GB" if abs(count) >= 1e9 else f"{count / 1e6:.1f} MB"
