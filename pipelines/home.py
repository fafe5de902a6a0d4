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


def data_address(uri: str | None, dataset: str) -> str:
    """Where a built data set is: `uri`, absolute if it is a folder's path, or the home's own place for it."""
    if uri and "://" in uri and not uri.startswith(("s3://", "file://")):
        raise UserError(f"data.uri must be a folder, s3://bucket/prefix or file:///folder, got {uri!r}.")
    return uri if uri and "://" in uri else str(Path(uri).absolute() if uri else home() / "data" / dataset)


def default_tracking_uri() -> str:
    """MLflow's address: `MLFLOW_TRACKING_URI`, or a SQLite file in the home."""
    return os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{home() / 'mlflow.db'}")
