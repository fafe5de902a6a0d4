import shutil

import pytest

from pipelines.config import parse_config
from pipelines.search.ledger import Ledger
from pipelines.storage import FolderStore
from pipelines.tracking import runs as tracking


@pytest.fixture
def searched():
    """A function from changes of the `tune` section, and of others, to a recipe."""

    def make(tune=None, **sections):
        tree = {"name": "toy", "data": {"dataset": "toy", "batch_size": 8}, "optim": {"epochs": 9}} | sections
        return parse_config(tree | {"tune": tune or {}}, origin="toy")

    return make


@pytest.fixture
def store(tmp_path):
    return FolderStore(tmp_path / "search")


@pytest.fixture
def ledger(store, searched):
    return Ledger.create(store, searched())


@pytest.fixture(scope="session")
def empty_tracking(tmp_path_factory):
    """A data base that MLflow has made, which takes it seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    tracking.connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def client(tmp_path, empty_tracking):
    """MLflow on a SQLite file of the test's own."""
    shutil.copyfile(empty_tracking, tmp_path / "mlflow.db")
    return tracking.connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
