"""The lock of a run: one process of this home works on it. It ends with the process, however that ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pipelines.errors import UserError
from pipelines.home import home
from pipelines.names import checked_run_id
from pipelines.tracking.process import name_of, process_tags

_WAIT_S = 1.0  # the scribe and the reaper hold it for moments


def lock_of(name: str) -> FileLock:
    """The lock `name` of this home, not taken yet."""
    checked_run_id(name.removesuffix(".scribe"))
    folder = home() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock")


@contextmanager
def claimed(run_id: str, wait_s: float = _WAIT_S) -> Iterator[None]:
    """Hold the run's lock. Raises UserError, which names the holder, where another process has it."""
    lock = lock_of(run_id)
    holder = Path(lock.lock_file).with_suffix(".holder")
    try:
        lock.acquire(timeout=wait_s)
    except Timeout as error:
        raise being_trained(run_id, _name_in(holder)) from error
    try:
        with suppress(OSError):  # a full disk: the lock holds without it
            holder.write_text(name_of(process_tags()), encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def being_trained(run_id: str, holder: str) -> UserError:
    """The refusal of a run that somebody works on."""
    return UserError(f"Run {run_id} is being trained by {holder}. Wait for it, or stop it first.")


def _name_in(holder: Path) -> str:
    try:
        return f"another process: {holder.read_text(encoding='utf-8')}"
    except OSError:  # not written yet, or gone by now
        return "another process"
