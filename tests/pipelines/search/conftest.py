import pytest

from pipelines.config import parse_config
from pipelines.search.ledger import Ledger
from pipelines.storage import FolderStore


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
