"""A run's journal on this machine's disk: what it has to tell MLflow, in order, one JSON object a line.

The driver appends, a process of its own sends (`scribe`), and what MLflow has taken is marked beside it:

    {"open": session, "uri": address}                     a driver takes the run up; a session is one such stay
    {"metrics": {key: value}, "step": s, "time": ms}      the time is set here, so that a row sent twice is the same row
    {"tag": key, "value": text}
    {"close": "FINISHED", "cause": text, "session": ..., "time": ms}   or "KILLED", "FAILED"
    {"abandon": session}                                  a newer attempt owns the run; its state is not ours to set
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.faults import fault_point
from pipelines.home import home
from pipelines.names import checked_run_id
from pipelines.secrets import redacted

_READ_AT_ONCE = 1 << 20  # bytes


class Entry(NamedTuple):
    """A line of the journal, and the offset in bytes behind it."""

    operation: dict[str, Any]
    end: int


@dataclass(frozen=True)
class Mark:
    """How far MLflow has taken the journal: an offset in bytes, and the session that was opened last before it."""

    offset: int = 0
    session: str = ""


def close_of(session: str, status: str, cause: str) -> dict[str, Any]:
    """The journal's line for the end of a session."""
    return {"close": status, "cause": redacted(cause), "session": session, "time": int(time.time() * 1000)}


def spool_folder() -> Path:
    """Where the journals of this home are."""
    return home() / "spool"


class Spool:
    """The journal of one run. Any number of processes may append to it; one at a time sends it."""

    def __init__(self, run_id: str) -> None:
        self.run_id = checked_run_id(run_id)
        folder = spool_folder()
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{run_id}.jsonl"
        self.log = folder / f"{run_id}.log"
        self._mark = folder / f"{run_id}.sent"

    def append(self, operation: Mapping[str, Any]) -> None:
        """Add a line, whole or not at all as far as a reader sees. Raises OSError where the disk does not take it."""
        fault_point("metrics.append")
        line = json.dumps(operation).encode() + b"\n"
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if _is_torn(file):  # a crash or a full disk cut the last line short: this one must not grow out of it
                line = b"\n" + line
            if os.write(file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        finally:
            os.close(file)

    def entries(self, start: int) -> list[Entry]:
        """Whole lines from an offset on, at most about a megabyte of them; what is torn or not ours is left out."""
        if start >= self.size():
            return []
        with self.path.open("rb") as file:
            file.seek(start)
            text = file.read(_READ_AT_ONCE)
            if b"\n" not in text:
                text += file.readline()
        return list(_parsed(text, start))

    def size(self) -> int:
        """Bytes that were appended."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def mark(self) -> Mark:
        """What was acknowledged last; the start where nothing was, or where the mark is not this journal's."""
        try:
            mark = Mark(**json.loads(self._mark.read_text()))
        except (OSError, ValueError, TypeError):
            return Mark()
        return mark if mark.offset <= self.size() else Mark()

    def acknowledge(self, mark: Mark) -> None:
        """Note that MLflow has everything before the mark. Raises OSError where the disk does not take it."""
        fault_point("metrics.acknowledge")
        new = self._mark.with_suffix(".new")
        new.write_text(json.dumps({"offset": mark.offset, "session": mark.session}))
        new.replace(self._mark)

    def waiting(self) -> list[Entry]:
        """All that is not acknowledged yet."""
        found: list[Entry] = []
        start = self.mark().offset
        while more := self.entries(start):
            found += more
            start = more[-1].end
        return found

    def remove(self) -> None:
        """Delete the journal. The mark goes first: one that outlived its journal would hide the next one's lines."""
        for path in (self._mark, self.path, self.log):
            path.unlink(missing_ok=True)


def _is_torn(file: int) -> bool:
    size = os.fstat(file).st_size
    return size > 0 and os.pread(file, 1, size - 1) != b"\n"


def _parsed(text: bytes, start: int) -> Iterator[Entry]:
    end = start
    for line in text.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            return
        end += len(line)
        try:
            operation = json.loads(line)
        except ValueError:
            operation = {}
        yield Entry(operation if isinstance(operation, dict) else {}, end)
