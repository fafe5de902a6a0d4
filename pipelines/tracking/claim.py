"""The lock of a run: one process of this home works on it. It ends with the process, however that ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from pipelines.errors import UserError
from pipelines.home import home
from pipelines.names import checked_run_id

_WAIT_S = 1.0  # the scribe and the reaper hold it for moments


def lock_of(name: str) -> FileLock:
    """The lock `name` of this home, not taken yet."""
    checked_run_id(name.removesuffix(".scribe"))
    folder = home() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock")


@contextmanager
def claimed(run_id: str, wait_s: float = _WAIT_S) -> Iterator[None]:
    """Hold the run's lock. Raises UserError where another process has it."""
    lock = lock_of(run_id)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout as error:
        raise UserError(f"Run {run_id} is being trained by another process. Wait for it, or stop it first.") from error
    try:
        yield
    finally:
        lock.release()
