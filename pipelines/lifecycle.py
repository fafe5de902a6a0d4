"""A run from its opening to its end: one process at a time, and an MLflow state that tells what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from filelock import FileLock, Timeout

from pipelines import tracking
from pipelines.checkpoint import sha256_of
from pipelines.config import RunConfig, config_differences, parse_config
from pipelines.data.manifest import Manifest
from pipelines.errors import UserError
from pipelines.home import home
from pipelines.progress import Say
from pipelines.version import code_version

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_CODE = "agmm.code_version"


@contextmanager
def tracked(client: MlflowClient, config: RunConfig, manifest: Manifest, *, resume: bool, say: Say) -> Iterator[str]:
    """Open a run, or the newest unfinished one, around the work; yields its id and ends it as the work ended.

    Raises UserError before anything of a run is touched where it cannot be resumed; ServiceError where MLflow fails.
    """
    uri = str(config.tracking.uri)
    with tracking.explained(uri):
        run_id = _resumable(client, config, manifest) if resume else tracking.create_run(client, config)
    with _claimed(run_id), _closed(client, run_id, say):
        with tracking.explained(uri):
            if resume:
                tracking.reopen_run(client, run_id)
            else:
                tracking.describe_run(client, run_id, config, {_CODE: code_version()} | _digests(config, manifest))
        say(f"{'resuming' if resume else 'started'} run {run_id}: {tracking.address_of(client, run_id)}")
        yield run_id


def _digests(config: RunConfig, manifest: Manifest) -> dict[str, str]:
    """What a run learns from beside its configuration, by tag: a resume must find the same."""
    digests = {f"agmm.data.{split}": info.content_digest for split, info in manifest.splits.items()}
    weights = config.loss.distill.weights
    return digests | ({"agmm.teacher": sha256_of(Path(weights))} if weights else {})


def _resumable(client: MlflowClient, config: RunConfig, manifest: Manifest) -> str:
    run = tracking.find_unfinished(client, config)
    run_id = str(run.info.run_id)
    with _claimed(run_id):
        _refuse_changes(run, config, manifest)
    return run_id


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
def _claimed(run_id: str) -> Iterator[None]:
    """Hold the run's lock, which ends with the process however that ends."""
    folder = home() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / f"{run_id}.lock", timeout=0):
            yield
    except Timeout as error:
        raise UserError(f"Run {run_id} is being trained by another process. Wait for it, or stop it first.") from error


@contextmanager
def _closed(client: MlflowClient, run_id: str, say: Say) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        _close(client, run_id, "KILLED", "interrupted", say)
        raise
    except BaseException as error:
        _close(client, run_id, "FAILED", f"{type(error).__name__}: {error}", say)
        raise
    _close(client, run_id, "FINISHED", "", say)


def _close(client: MlflowClient, run_id: str, status: str, cause: str, say: Say) -> None:
    """End the run in MLflow; a failure to do so is said and does not hide what ended the work."""
    from mlflow.exceptions import MlflowException

    try:
        tracking.close_run(client, run_id, status, cause)
    except (MlflowException, OSError) as error:
        say(f"MLflow could not be told that run {run_id} is {status}: {error}")
