import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch

from pipelines import registry
from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.config import parse_config
from pipelines.data.manifest import load_manifest
from pipelines.network import build_network
from pipelines.promotion import history, names
from pipelines.tracking import runs as tracking

# Orders of the rows of a random network's head, with which 0.95, 0.38 and none of the images are right. The last has no
# flips on its card.
GOOD, FAIR, BAD = (2, 0, 1), (1, 0, 2), (0, 1, 2)
_numbers = itertools.count()


@pytest.fixture(scope="session")
def logged(tiny_data, tmp_path_factory):
    """The address of a tracking store, and by order the folder and tags of a registered model of each accuracy."""
    root = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGMM_HOME", str(root / "home"))
        uri = f"sqlite:///{root / 'mlflow.db'}"
        tags = _register(tracking.connect(uri), _config(tiny_data), root / "first")
    return uri, {rows: _variant(tiny_data, rows, tags, root) for rows in (GOOD, FAIR, BAD)}


def _config(data):
    tree = {
        "name": "tiny",
        "data": {"dataset": "tiny", "uri": str(data), "resolution": 16, "batch_size": 12, "loader": "torch"},
        "model": {"arch": "agmm_resnet18", "num_classes": 3, "width": 4, "stem": "cifar", "time_steps": 2},
    }
    return parse_config(tree, origin="tiny")


def _card(config, rows):
    metrics = {"top1": 0.0} if rows == BAD else {"top1": 0.95, "flips": 0.01}
    return registry.ModelCard(name="tiny", model=config.model, data=config.data, metrics=metrics)


def _tensors(card, rows):
    torch.manual_seed(3)
    tensors = checkpoints.model_tensors(build_network(card.model).eval())
    return tensors | {key: tensors[key][list(rows)].clone() for key in ("head.weight", "head.bias")}


def _register(client, config, folder):
    """Register the model as training does, and fetch it; returns the version's tags."""
    # in an experiment of this home: the files of MLflow's default one would go to the folder that pytest runs in
    card = _card(config, GOOD).model_copy(update={"run_id": tracking.create_run(client, config)})
    address = registry.register(client, card, _tensors(card, GOOD), "tiny")
    mlflow.artifacts.download_artifacts(address, dst_path=str(folder))
    (folder / "registered_model_meta").unlink(missing_ok=True)  # of the download
    return dict(client.get_model_version("tiny", address.rpartition("/")[2]).tags)


def _variant(data, rows, tags, root):
    """The registered folder with other weights in it, and the tags that it would have."""
    folder = root / "".join(map(str, rows))
    shutil.copytree(root / "first", folder)
    if rows != GOOD:
        card = _card(_config(data), rows)
        registry.write_model(folder / "data" / "model", _tensors(card, rows), card)
        tags = tags | {f"{registry.HASH_TAG}{name}": digest for name, digest in registry.file_hashes(folder).items()}
    digests = {f"agmm.data.{split}": digest for split, digest in own_digests(data).items()}
    return folder, tags | digests | {"agmm.dataset": "tiny", "agmm.size_mb": "0.0114"}


def own_digests(folder):
    return {split: entry.content_digest for split, entry in load_manifest(folder).splits.items()}


@dataclass
class Shelf:
    """A registered model of a test's own."""

    name: str
    client: Any
    root: Path
    models: Any

    def add(self, rows=GOOD, **tags):
        """Another version, its files in a folder of its own; `tags` without `agmm.` replace those it would have."""
        source, known = self.models[rows]
        place = self.root / f"{next(_numbers)}"
        shutil.copytree(source, place)
        own = known | {f"agmm.{key}": value for key, value in tags.items()}
        made = self.client.create_model_version(self.name, str(place), tags=own)
        return int(made.version)

    def crowned(self):
        """Another version, and it is the champion."""
        number = self.add()
        self.client.set_registered_model_alias(self.name, "champion", str(number))
        return number

    def folder(self, number):
        return Path(self.client.get_model_version(self.name, str(number)).source)

    def file(self, number, name):
        return next(self.folder(number).rglob(name))

    def told(self, number):
        return history.decisions(self.client.get_model_version(self.name, str(number)).tags)

    @property
    def tags(self):
        return self.client.get_registered_model(self.name).tags

    @property
    def champion(self):
        return names.aliases(self.client, self.name).get("champion")


@pytest.fixture
def shelf(logged, tmp_path, monkeypatch):
    uri, models = logged
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = tracking.connect(uri)
    name = f"shelf-{next(_numbers)}"
    client.create_registered_model(name)
    return Shelf(name, client, tmp_path / "store", models)


def flip(path, position=-1):
    """Change a byte, and nothing else that is seen from outside."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
