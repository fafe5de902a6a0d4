"""A run from its opening to its end: one process at a time, and an MLflow state that tells what became of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import yaml

from pipelines import logs
from pipelines.checkpoints.checkpoint import sha256_of
from pipelines.config import RunConfig, config_differences, parse_config
from pipelines.data.manifest import Manifest
from pipelines.errors import Fenced, TrainingFailed, UserError
from pipelines.progress import Say
from pipelines.tracking import runs as tracking
from pipelines.tracking import signals
from pipelines.tracking.claim import being_trained, claimed
from pipelines.tracking.journal import Journal
from pipelines.tracking.process import is_alive, is_self, name_of, new_session, process_tags
from pipelines.version import code_version

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_CODE = "agmm.code_version"
_WATCH_S = 45.0  # longer than a scribe's heartbeat (30 s) and its pause after an outage of MLflow (10 s) together
_WAIT_S = 20.0  # at the end, for MLflow to learn of it


class Opened(NamedTuple):
    """A run that is being worked on: its id in MLflow, and where it says how it goes."""

    id: str
    journal: Journal


@contextmanager
def tracked(
    client: MlflowClient, config: RunConfig, manifest: Manifest, *, resume: bool, say: Say, finished: bool = False
) -> Iterator[Opened]:
    """Open a run, or the newest that can be resumed, around the work; ends it as the work ended.

    finished: whether one that has finished can be resumed too, as a search can that is given more trials.

    Work that ends by Fenced leaves the run's state alone: it is the newer attempt's.

    Raises UserError before anything of a run is touched where it cannot be resumed; ServiceError where MLflow fails.
    """
    uri = str(config.tracking.uri)
    session = new_session()
    tags = {tracking.SESSION_TAG: session} | process_tags()
    with tracking.explained(uri):
        run_id = (
            _resumable(client, config, manifest, finished, say) if resume else tracking.create_run(client, config, tags)
        )
    with claimed(run_id):
        if resume:
            with tracking.explained(uri):
                tracking.reopen_run(client, run_id, tags)
        journal = Journal(run_id, session, uri, say)
        with logs.of_run(run_id), _closed(journal):
            if not resume:
                with tracking.explained(uri):
                    tracking.describe_run(client, run_id, config, {_CODE: code_version()} | _digests(config, manifest))
            with tracking.explained(uri):
                where = tracking.address_of(client, run_id)
            say(f"{'resuming' if resume else 'started'} run {run_id}: {where}")
            yield Opened(run_id, journal)


def _digests(config: RunConfig, manifest: Manifest) -> dict[str, str]:
    """What a run learns from beside its configuration, by tag: a resume must find the same."""
    digests = {f"agmm.data.{split}": info.content_digest for split, info in manifest.splits.items()}
    weights = config.loss.distill.weights
    return digests | ({"agmm.teacher": sha256_of(Path(weights))} if weights else {})


def _resumable(client: MlflowClient, config: RunConfig, manifest: Manifest, finished: bool, say: Say) -> str:
    run = tracking.find_resumable(client, config, finished=finished)
    run_id = str(run.info.run_id)
    with claimed(run_id):
        _refuse_changes(run, config, manifest)
        _refuse_living(client, run, say)
    return run_id


def _refuse_living(client: MlflowClient, run: Run, say: Say) -> None:
    """The run's lock is this home's: a process of another home or machine may work on it too.

    One of another machine is watched for a sign of life. Two who come at the same moment meet at the checkpoints.
    """
    tags = run.data.tags
    if run.info.status != "RUNNING" or is_self(tags):
        return
    alive = is_alive(tags)
    if alive is None and tags.get(tracking.HEARTBEAT_TAG):
        say(f"run {run.info.run_id} was with {name_of(tags)}: watching for {_WATCH_S:.0f} s whether it lives")
        alive = _gives_sign(client, run)
    if alive:
        raise being_trained(run.info.run_id, f"another process: {name_of(tags)}")


def _gives_sign(client: MlflowClient, run: Run) -> bool:
    until = time.monotonic() + _WATCH_S
    signs = (tracking.HEARTBEAT_TAG, tracking.SESSION_TAG)
    while time.monotonic() < until:
        time.sleep(1.0)
        now = client.get_run(run.info.run_id)
        if now.info.status != "RUNNING":
            return False
        if any(now.data.tags.get(sign) != run.data.tags.get(sign) for sign in signs):
            return True
    return False


def _refuse_changes(run: Run, config: RunConfig, manifest: Manifest) -> None:
    before = parse_config(yaml.safe_load(tracking.logged_config(run)), origin=f"run {run.info.run_id}")
    changed = config_differences(before, config)
    for tag, now in _digests(config, manifest).items():
        logged = run.data.tags.get(tag)
        if logged != now:
            changed.append(f"{tag} (SHA-256): {logged} -> {now}")
    if changed:
        lines = "\n".join(f"  {line}" for line in changed)
        raise UserError(f"Run {run.info.run_id} was started with another configuration:\n{lines}\nStart a new run.")


@contextmanager
def _closed(journal: Journal) -> Iterator[None]:
    try:
        yield
    except Fenced:
        journal.abandon(wait_s=_WAIT_S)
        raise
    except KeyboardInterrupt:
        journal.close("KILLED", signals.take_cause(), wait_s=_WAIT_S)
        raise
    except BaseException as error:
        journal.close("FAILED", _cause(error), wait_s=_WAIT_S)
        raise
    journal.close("FINISHED", wait_s=_WAIT_S)


def _cause(error: BaseException) -> str:
    """What ended a run: the name of the error where it arose, and its text."""
    return error.cause if isinstance(error, TrainingFailed) else f"{type(error).__name__}: {error}"
