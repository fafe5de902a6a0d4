"""The MLflow side of a run: open or reopen it, log to it, close it in the right state."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from pipelines.config import RunConfig, flatten
from pipelines.errors import ServiceError, UserError
from pipelines.home import default_tracking_uri, home

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

_RECIPE_TAG = "agmm.recipe"
_BATCH = 100  # parameters that one request of MLflow takes


def tracking_uri(configured: str | None) -> str:
    """The address that a run logs to, absolute."""
    return configured or default_tracking_uri()


def connect(uri: str) -> MlflowClient:
    """A client of the tracking server or file at `uri`. Raises ServiceError where it does not answer."""
    # a server that is down is an error within seconds, not after MLflow's default of minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is for results
    import mlflow

    for chatty in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
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
    except MlflowException as error:
        raise ServiceError(
            f"MLflow at {uri} failed: {error}. Check `agmm status`, MLFLOW_TRACKING_URI and credentials."
        ) from error


def open_run(client: MlflowClient, config: RunConfig, tags: Mapping[str, str]) -> str:
    """Create a run with its parameters and resolved configuration; returns its id."""
    run = client.create_run(
        _experiment_id(client, config.tracking.experiment),
        run_name=config.name,
        tags={_RECIPE_TAG: config.name, **tags},
    )
    run_id = run.info.run_id
    _log_params(client, run_id, flatten(config.model_dump(mode="json")))
    client.log_text(run_id, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), "config.yaml")
    return run_id


def find_run(client: MlflowClient, config: RunConfig) -> str:
    """The newest run of this recipe that has not finished. Raises UserError where there is none."""
    found = client.search_runs(
        [_experiment_id(client, config.tracking.experiment)],
        filter_string=f"tags.`{_RECIPE_TAG}` = '{config.name}'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    if not found:
        raise UserError(
            f"Nothing to resume: experiment {config.tracking.experiment!r} has no run of {config.name!r}. "
            "Leave out --resume to start one."
        )
    if found[0].info.status == "FINISHED":
        raise UserError(
            f"Nothing to resume: the newest run of {config.name!r}, {found[0].info.run_id}, has finished. "
            "Leave out --resume to start another."
        )
    client.update_run(found[0].info.run_id, status="RUNNING")
    return found[0].info.run_id


def log_metrics(client: MlflowClient, run_id: str, metrics: Mapping[str, float], step: int) -> None:
    """Log a row of metrics at an optimiser step, in one request."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    client.log_batch(run_id, metrics=[Metric(key, float(value), now, step) for key, value in metrics.items()])


def log_figure(client: MlflowClient, run_id: str, figure: Figure, name: str) -> None:
    """Log a figure as `figures/<name>.png`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.png"
        figure.savefig(path, dpi=120)
        client.log_artifact(run_id, str(path), "figures")


def history(client: MlflowClient, run_id: str, keys: list[str]) -> dict[str, list[tuple[int, float]]]:
    """(step, value) rows of metrics, by key, without doubles: a step that was repeated keeps its last value."""
    rows = {key: {m.step: m.value for m in client.get_metric_history(run_id, key)} for key in keys}
    return {key: sorted(values.items()) for key, values in rows.items()}


def close_run(client: MlflowClient, run_id: str, status: str, cause: str = "") -> None:
    """End a run as FINISHED, KILLED or FAILED, with the cause as a tag."""
    if cause:
        client.set_tag(run_id, "agmm.cause", cause[:5000])
    client.set_terminated(run_id, status)


def _experiment_id(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    is_server = str(client.tracking_uri).startswith("http")
    # a server decides itself where artifacts go; a local file would put them into the current folder
    return client.create_experiment(name, artifact_location=None if is_server else (home() / "artifacts").as_uri())


def _log_params(client: MlflowClient, run_id: str, flat: Mapping[str, object]) -> None:
    from mlflow.entities import Param

    params = [Param(key, str(value)) for key, value in flat.items()]
    for start in range(0, len(params), _BATCH):
        client.log_batch(run_id, params=params[start : start + _BATCH])


def describe_run(client: MlflowClient, run_id: str) -> str:
    """Where a person looks at a run: the server's page, or the command that shows the local file."""
    uri = str(client.tracking_uri)
    if not uri.startswith("http"):
        return f"mlflow ui --backend-store-uri {uri}"
    return f"{uri}/#/experiments/{client.get_run(run_id).info.experiment_id}/runs/{run_id}"
