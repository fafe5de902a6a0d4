"""Do the store of checkpoints and MLflow take what a run gives them?"""

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.doctor.check import Outcome
from pipelines.storage import open_store
from pipelines.storage.probe import probe
from pipelines.tracking import runs as tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PROBE = "agmm-doctor-probe"


def store(uri: str) -> Outcome:
    """A file can be written once, written over, listed, read and deleted where checkpoints go."""
    probe(open_store(uri))
    return "pass", f"{uri}: written, read back, listed, deleted, and nothing written over that was there", ""


def mlflow(uri: str, experiment: str | None) -> Outcome:
    """MLflow answers, lets us in, has the experiment (or has made it) and takes a file; no run is opened."""
    client = tracking.connect(uri)
    if experiment is None:
        return "pass", f"{uri} lets us in", ""
    with tracking.explained(uri):
        found = client.get_experiment(tracking.experiment_id(client, experiment))
        _probe_artifacts(client, found)
    return "pass", f"{uri}: experiment {experiment!r} is there, and takes files", ""


def _probe_artifacts(client: MlflowClient, experiment: Any) -> None:
    """Store a small file beside the experiment's runs, and delete it."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    place = f"{experiment.artifact_location.rstrip('/')}/{_PROBE}-{uuid.uuid4().hex}"
    repository = get_artifact_repository(place, tracking_uri=str(client.tracking_uri))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.txt"
        path.write_text("agmm")
        repository.log_artifact(str(path))
        repository.delete_artifacts()
