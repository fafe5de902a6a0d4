"""The MLflow side of a run: open or reopen it, log to it, close it in the right state."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

import yaml

from pipelines.config import RunConfig, flatten
from pipelines.errors import NothingToResume, ServiceError, UserError
from pipelines.home import default_tracking_uri, home
from pipelines.secrets import redacted, refuse_credentials
from pipelines.tracking.process import JOB_TAG

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

RECIPE_TAG, CAUSE_TAG = "agmm.recipe", "agmm.cause"
SESSION_TAG = "agmm.session"  # which of a run's drivers owns its state
JOBS_TAG = "agmm.jobs"  # ids of all Ray jobs that worked on a run, with blanks between
HEARTBEAT_TAG = "agmm.heartbeat"  # when its scribe was last at work, UTC
_CONFIG = "config.yaml"
_LONGEST_TAG = 5000  # characters
_BATCH = 100  # parameters that one request of MLflow takes


def tracking_uri(configured: str | None) -> str:
    """The address that a run logs to. Raises UserError for one that is not allowed."""
    uri = configured or default_tracking_uri()
    refuse_credentials([uri], "tracking.uri, which is stored with the run")
    if urlparse(uri).scheme not in ("sqlite", "http", "https"):
        raise UserError(f"tracking.uri={uri!r} is not allowed. Allowed: http(s)://host:port, sqlite:///path.")
    return uri


def connect(uri: str) -> MlflowClient:
    """A client of the tracking server or file at `uri`. Raises ServiceError where it does not answer."""
    # a server that is down is an error within seconds, not after MLflow's default of minutes
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"  # an artifact is never asked to run code
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is for results
    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)
    # a disk that is full, or a lock that is held, is an error of ours, in a sentence, not a traceback of SQLAlchemy
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    client = mlflow.MlflowClient(uri, registry_uri=uri)
    with explained(uri):
        client.search_experiments(max_results=1)
    return client


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turns MLflow's own error into a ServiceError that says where and what to do."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise ServiceError(
            f"MLflow at {uri} failed: {str(error).rstrip('.')}. "
            "Check `agmm status`, MLFLOW_TRACKING_URI and the credentials."
        ) from error


def create_run(client: MlflowClient, config: RunConfig, tags: Mapping[str, str] | None = None) -> str:
    """Create a run of the recipe, empty but for tags; returns its id."""
    experiment = experiment_id(client, config.tracking.experiment)
    all_tags = {RECIPE_TAG: config.name} | dict(tags or {}) | _jobs(tags or {})
    return client.create_run(experiment, run_name=config.name, tags=all_tags).info.run_id


def describe_run(client: MlflowClient, run_id: str, config: RunConfig, tags: Mapping[str, str]) -> None:
    """Log a run's parameters, tags and resolved configuration."""
    _set_tags(client, run_id, tags)
    _log_params(client, run_id, flatten(config.model_dump(mode="json")))
    client.log_text(run_id, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), _CONFIG)


def find_resumable(client: MlflowClient, config: RunConfig, *, finished: bool = False) -> Run:
    """The newest run of this recipe that has not finished, or with `finished` the newest of all.

    Raises NothingToResume where there is none.
    """
    only = "" if finished else " and attributes.status != 'FINISHED'"
    found = client.search_runs(
        [experiment_id(client, config.tracking.experiment)],
        filter_string=f"tags.`{RECIPE_TAG}` = '{config.name}'{only}",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    if not found:
        kind = "run" if finished else "unfinished run"
        raise NothingToResume(
            f"Nothing to resume: experiment {config.tracking.experiment!r} has no {kind} of {config.name!r}. "
            "Leave out --resume to start one."
        )
    return found[0]


def running(client: MlflowClient) -> list[Run]:
    """Every run of a recipe that MLflow has as RUNNING."""
    found: list[Run] = []
    token: str | None = ""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    while token is not None:
        page = client.search_runs(
            experiments, f"attributes.status = 'RUNNING' and tags.`{RECIPE_TAG}` != ''", page_token=token or None
        )
        found, token = found + list(page), page.token or None
    return found


def logged_config(run: Run) -> str:
    """The YAML that `describe_run` logged. Raises UserError where the run ended before it was."""
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        return mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{_CONFIG}")
    except (MlflowException, OSError) as error:
        raise UserError(
            f"Run {run.info.run_id} has no {_CONFIG} to compare with: {error}. Leave out --resume to start another run."
        ) from error


def reopen_run(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Set a run that goes on to RUNNING, with tags of who goes on, without the cause of its last end."""
    before = client.get_run(run_id).data.tags
    _set_tags(client, run_id, {**tags, **_jobs(tags, before.get(JOBS_TAG, ""))})
    if CAUSE_TAG in before:
        client.delete_tag(run_id, CAUSE_TAG)
    client.update_run(run_id, status="RUNNING")


def _jobs(tags: Mapping[str, str], before: str = "") -> dict[str, str]:
    """All jobs that worked on a run, whose newest its tags may name."""
    job = tags.get(JOB_TAG)
    return {JOBS_TAG: f"{before} {job}".strip()} if job else {}


def log_figure(client: MlflowClient, run_id: str, figure: Figure, name: str) -> None:
    """Log a figure as `figures/<name>.png`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.png"
        figure.savefig(path, dpi=120)
        client.log_artifact(run_id, str(path), "figures")


def history(client: MlflowClient, run_id: str, keys: list[str]) -> dict[str, list[tuple[int, float]]]:
    """(step, value) rows of metrics, by key and ordered by step; a step that was logged twice has its first value.

    Two drivers of a run may both log a step until the older one sees the newer one.
    """
    return {key: _first_values(client.get_metric_history(run_id, key)) for key in keys}


def _first_values(metrics: Iterable[Metric]) -> list[tuple[int, float]]:
    """As the sender has it: the first write of a step stays."""
    newest_first = sorted(metrics, key=lambda metric: metric.timestamp, reverse=True)
    return sorted({metric.step: metric.value for metric in newest_first}.items())


def close_run(client: MlflowClient, run_id: str, status: str, cause: str = "") -> None:
    """End a run as FINISHED, KILLED or FAILED, with the cause as a tag."""
    if cause:
        client.set_tag(run_id, CAUSE_TAG, redacted(cause)[:_LONGEST_TAG])
    client.set_terminated(run_id, status)


def experiment_id(client: MlflowClient, name: str) -> str:
    """The id of an experiment, which is made where there is none."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    is_server = str(client.tracking_uri).startswith("http")
    # a server decides itself where artifacts go; a local file would put them into the current folder
    return client.create_experiment(name, artifact_location=None if is_server else (home() / "artifacts").as_uri())


def _set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def _log_params(client: MlflowClient, run_id: str, flat: Mapping[str, object]) -> None:
    from mlflow.entities import Param

    params = [Param(key, str(value)) for key, value in flat.items()]
    for start in range(0, len(params), _BATCH):
        client.log_batch(run_id, params=params[start : start + _BATCH])


def address_of(client: MlflowClient, run_id: str) -> str:
    """Where a person looks at a run: the server's page, or the command that shows the local file."""
    uri = str(client.tracking_uri)
    if not uri.startswith("http"):
        return f"mlflow ui --backend-store-uri {uri}"
    return f"{uri}/#/experiments/{client.get_run(run_id).info.experiment_id}/runs/{run_id}"
