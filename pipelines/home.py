"""Where a run's things are when nobody says otherwise: `AGMM_HOME` (`.agmm`) and `AGMM_STORE` (the home)."""

import os
from pathlib import Path

from pipelines.errors import UserError


def home() -> Path:
    """The folder below which everything local lives, absolute."""
    return Path(os.environ.get("AGMM_HOME", ".agmm")).absolute()


def default_store() -> str:
    """Folder or `s3://bucket` below which checkpoints live; `agmm up` points it at its S3 server."""
    return os.environ.get("AGMM_STORE", str(home()))


def data_folder(uri: str | None, dataset: str) -> Path:
    """The folder of a built data set: `uri`, or the home's own place for it."""
    if uri and "://" in uri:
        raise UserError(f"data.uri must be a folder of this machine, got {uri!r}. Copy the data set there first.")
    return Path(uri).absolute() if uri else home() / "data" / dataset


def default_tracking_uri() -> str:
    """MLflow's address: `MLFLOW_TRACKING_URI`, or a SQLite file in the home."""
    return os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{home() / 'mlflow.db'}")
