"""Which process, and which Ray job, works on a run, as tags: `agmm.host`, `.machine`, `.pid`, `.started`, `.job`."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path

_HOST, _MACHINE, _PID, _STARTED = "agmm.host", "agmm.machine", "agmm.pid", "agmm.started"
JOB_TAG = "agmm.job"  # the id of the Ray job that a process belongs to, empty for none
_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # how a job's command learns of itself


def process_tags() -> dict[str, str]:
    """This process."""
    pid = os.getpid()
    tags = {_HOST: socket.gethostname(), _MACHINE: _machine(), _PID: str(pid), _STARTED: _started(pid)}
    return tags | {JOB_TAG: job_id()}


def job_id() -> str:
    """The id under which a Ray head runs this process as a job; empty outside of one."""
    try:
        return str(json.loads(os.environ.get(_RAY_JOB, "{}"))["metadata"]["job_submission_id"])
    except (ValueError, KeyError, TypeError):
        return ""


def new_session() -> str:
    """A name for one driver's stay with a run, which nobody else has: `JOB/...` where a Ray job is the driver."""
    return f"{job_id()}/{uuid.uuid4().hex}".removeprefix("/")


def is_alive(tags: Mapping[str, str]) -> bool | None:
    """Whether the process of these tags runs; None where that cannot be seen from here."""
    machine, started = tags.get(_MACHINE), tags.get(_STARTED)
    if not machine or not started or machine != _machine():
        return None
    return _started(int(tags[_PID])) == started


def name_of(tags: Mapping[str, str]) -> str:
    """The process in words."""
    job = tags.get(JOB_TAG)
    process = f"process {tags.get(_PID, '?')} on {tags.get(_HOST, 'an unknown machine')}"
    return f"job {job} ({process})" if job else process


def is_self(tags: Mapping[str, str]) -> bool:
    """Whether the process of these tags is this one."""
    return is_alive(tags) is True and tags.get(_PID) == str(os.getpid())


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
