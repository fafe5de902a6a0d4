"""The jobs that a Ray head knows: list them, tell of one, show its log, stop it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cluster.errors import ServiceError, UserError
from cluster.jobs.client import Head
from cluster.jobs.follow import follow
from cluster.settings import JOB_STOP_WAIT

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_PAUSE_S = 0.2
_STOP_S = float(JOB_STOP_WAIT["RAY_JOB_STOP_WAIT_TIME_S"]) + 30.0


class Job(NamedTuple):
    """One job as the head knows it. Times are in UTC; `exit_code` is None unless the job's command ended by itself.

    `metadata` is what `submit` sent with it: who, from where, which version and recipe; empty for another's job.
    """

    id: str
    status: str
    command: str
    started: datetime | None
    ended: datetime | None
    exit_code: int | None
    message: str
    metadata: dict[str, str]

    @property
    def over(self) -> bool:
        """Whether it has ended, well or badly."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


def jobs_list(head: Head) -> list[Job]:
    """List every job that the head knows, the newest first."""
    jobs = [_job(details) for details in head.client.list_jobs()]
    return sorted(jobs, key=lambda job: job.started or datetime.min.replace(tzinfo=UTC), reverse=True)


def job_of(head: Head, name: str) -> Job:
    """What the head knows of one job. Raises RuntimeError, which `connected` explains, for one that it does not."""
    return _job(head.client.get_job_info(checked_name(name)))


def job_logs(head: Head, name: str) -> str:
    """Return the whole log of a job, so far."""
    return str(head.client.get_job_logs(checked_name(name)))


def job_follow(head: Head, name: str, say: Callable[[str], None]) -> int:
    """Print the log of a job until it ends; its exit code. See `follow`."""
    head.client.get_job_info(checked_name(name))  # an unknown one is told before anything is followed
    return follow(head, name, say)


def job_stop(head: Head, name: str, *, wait: bool = False, say: Callable[[str], None] = print) -> bool:
    """Ask a job to end; False if it had ended already.

    With `wait`, return when it has: one that trains saves a checkpoint first. Raises ServiceError where it does not end
    in the time that the head gives it.
    """
    if not head.client.stop_job(checked_name(name)):
        return False
    if wait:
        say(f"waiting for {name} to end, for at most {_STOP_S:.0f} s")
        deadline = time.monotonic() + _STOP_S
        while not (job := job_of(head, name)).over:
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"{name} is still {job.status} after {_STOP_S:.0f} s. `agmm jobs logs {name}` says why."
                )
            time.sleep(_PAUSE_S)
    return True


def checked_name(name: str) -> str:
    """Refuse what is no job's id: it becomes part of an address, and `../` would lead to another page of the head."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is no id of a job: letters, digits, dots, dashes, underscores. See `agmm jobs list`."
        )
    return name


def _job(details: Any) -> Job:
    """Convert Ray's JobDetails, whose times are in milliseconds."""
    started, ended = (
        datetime.fromtimestamp(each / 1000, UTC) if each else None for each in (details.start_time, details.end_time)
    )
    return Job(
        id=details.submission_id or details.job_id or "?",
        status=str(details.status.value),
        command=details.entrypoint,
        started=started,
        ended=ended,
        exit_code=details.driver_exit_code,
        message=(details.message or "").partition(", last available logs")[0],
        metadata=dict(details.metadata or {}),
    )
