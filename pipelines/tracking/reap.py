"""Closes runs whose process is gone, and sends what such a process has left on this machine's disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from filelock import Timeout

from pipelines.errors import ServiceError, UserError
from pipelines.progress import Say
from pipelines.tracking import runs as tracking
from pipelines.tracking.claim import claimed, lock_of
from pipelines.tracking.process import is_alive, name_of
from pipelines.tracking.runs import HEARTBEAT_TAG, SESSION_TAG
from pipelines.tracking.sender import Sender
from pipelines.tracking.spool import Spool, close_of, spool_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_WATCH_S = 45.0  # longer than a scribe's heartbeat (30 s) and its pause after an outage of MLflow (10 s) together
_LEAST_STALE = timedelta(minutes=1)


class Reaped(NamedTuple):
    """What was done about a run, and why."""

    run_id: str
    name: str
    done: str  # "closed", "sent" or "left"
    why: str


class _Verdict(NamedTuple):
    gone: bool | None  # None: it looks so from here, and is to be watched
    why: str


def reap(client: MlflowClient, uri: str, stale: timedelta, say: Say) -> list[Reaped]:
    """Close every run that is RUNNING in MLflow and has no process, and send every journal of this home that is left.

    A process of this machine is looked for by its number and start; one of another counts as gone when its heartbeat
    is older than `stale` and stays so while it is watched. Raises UserError for a `stale` below a minute;
    ServiceError where MLflow fails.
    """
    if stale < _LEAST_STALE:
        raise UserError(
            f"--stale={stale / timedelta(minutes=1):g} minutes is too short: a run that lives gives a sign every 30 s. "
            "Allowed: 1 or more."
        )
    with tracking.explained(uri):
        runs = tracking.running(client)
        verdicts = [_verdict(run, stale) for run in runs]
        if any(verdict.gone is None for verdict in verdicts):
            say(f"watching for {_WATCH_S:.0f} s whether runs of other machines live")
            time.sleep(_WATCH_S)
            verdicts = [_watched(client, run, verdict) for run, verdict in zip(runs, verdicts, strict=True)]
        rows = [_settle(client, uri, run, verdict) for run, verdict in zip(runs, verdicts, strict=True)]
    open_ids = {row.run_id for row in rows}
    return rows + [
        _send_rest(uri, path.stem) for path in sorted(spool_folder().glob("*.jsonl")) if path.stem not in open_ids
    ]


def _verdict(run: Run, stale: timedelta) -> _Verdict:
    tags = run.data.tags
    alive = is_alive(tags)
    if alive is not None:
        return _Verdict(not alive, f"{name_of(tags)} {'runs' if alive else 'is gone'}")
    age = datetime.now(UTC) - _last_sign(run)
    why = f"the last sign of {name_of(tags)} is {age.total_seconds() / 60:.1f} minutes old"
    return _Verdict(None if age > stale else False, why)


def _last_sign(run: Run) -> datetime:
    beat = run.data.tags.get(HEARTBEAT_TAG)
    return datetime.fromisoformat(beat) if beat else datetime.fromtimestamp(run.info.start_time / 1000, UTC)


def _watched(client: MlflowClient, run: Run, verdict: _Verdict) -> _Verdict:
    """The verdict after some time: a heartbeat or another session since then is a sign of life."""
    if verdict.gone is not None:
        return verdict
    tags = client.get_run(run.info.run_id).data.tags
    same = all(tags.get(key) == run.data.tags.get(key) for key in (HEARTBEAT_TAG, SESSION_TAG))
    return _Verdict(same, verdict.why if same else f"{name_of(tags)} has given a sign of life")


def _settle(client: MlflowClient, uri: str, run: Run, verdict: _Verdict) -> Reaped:
    """Close a run whose process is gone."""
    run_id, name = run.info.run_id, run.info.run_name
    if not verdict.gone:
        return Reaped(run_id, name, "left", verdict.why)
    try:
        with _alone(run_id):
            sender = _sent(run_id, uri)
            if client.get_run(run_id).info.status == "RUNNING":
                sender.close(close_of(run.data.tags.get(SESSION_TAG, ""), "FAILED", f"reaped: {verdict.why}"))
            Spool(run_id).remove()
    except UserError as error:
        return Reaped(run_id, name, "left", str(error))
    return Reaped(run_id, name, "closed", verdict.why)


def _send_rest(uri: str, run_id: str) -> Reaped:
    """Send what is left of a run that has ended, or leave it where it cannot be sent here."""
    belongs = [entry.operation["uri"] for entry in Spool(run_id).entries(0) if "open" in entry.operation]
    if belongs and belongs[-1] != uri:
        return Reaped(run_id, "", "left", f"its journal belongs to MLflow at {belongs[-1]}")
    try:
        with _alone(run_id):
            _sent(run_id, uri)
            Spool(run_id).remove()
    except (UserError, ServiceError) as error:
        return Reaped(run_id, "", "left", str(error))
    return Reaped(run_id, "", "sent", "its journal was left over")


@contextmanager
def _alone(run_id: str) -> Iterator[None]:
    """Hold the run against drivers and scribes. Raises UserError where one is at it."""
    with claimed(run_id, wait_s=0):
        try:
            with lock_of(f"{run_id}.scribe").acquire(timeout=0):
                yield
        except Timeout as error:
            raise UserError("Its scribe is at work, and closes it.") from error


def _sent(run_id: str, uri: str) -> Sender:
    sender = Sender(Spool(run_id), uri, lambda _: None)
    while sender.send():
        pass
    return sender
