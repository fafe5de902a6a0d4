"""Which process works on a run, as tags that another process can check: `agmm.host`, `.machine`, `.pid`, `.started`."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

_HOST, _MACHINE, _PID, _STARTED = "agmm.host", "agmm.machine", "agmm.pid", "agmm.started"


def process_tags() -> dict[str, str]:
    """This process."""
    pid = os.getpid()
    return {_HOST: socket.gethostname(), _MACHINE: _machine(), _PID: str(pid), _STARTED: _started(pid)}


def is_alive(tags: Mapping[str, str]) -> bool | None:
    """Whether the process of these tags runs; None where that cannot be seen from here."""
    machine, started = tags.get(_MACHINE), tags.get(_STARTED)
    if not machine or not started or machine != _machine():
        return None
    return _started(int(tags[_PID])) == started


def name_of(tags: Mapping[str, str]) -> str:
    """The process in words."""
    return f"process {tags.get(_PID, '?')} on {tags.get(_HOST, 'an unknown machine')}"


def _machine() -> str:
    """The machine since its last start, and the container: a process number means something only there. Linux only."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in ticks since boot, which no change of the clock shifts; empty for none or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # a name may hold spaces
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
