"""A model that was registered once for all tests of this folder that only read it, and what it was made of."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipelines import registry
from pipelines.config import parse_config
from pipelines.data.manifest import load_manifest
from pipelines.network import build_network
from pipelines.tracking import runs as tracking
from tests.pipelines.registry.helpers import METRICS, committed_run


@pytest.fixture
def network(tiny_config):
    torch.manual_seed(1)
    return build_network(tiny_config.model).eval()


@pytest.fixture
def card(tiny_config):
    return registry.ModelCard(name="tiny", model=tiny_config.model, data=tiny_config.data)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def published(tiny_data, tmp_path_factory):
    """`tiny` version 1, published from a checkpoint. Not to be changed."""
    root = tmp_path_factory.mktemp("published")
    tree = {
        "name": "tiny",
        "data": {"dataset": "tiny", "uri": str(tiny_data), "resolution": 16, "batch_size": 12, "loader": "torch"},
        "model": {"arch": "agmm_resnet18", "num_classes": 3, "width": 4, "stem": "cifar", "time_steps": 2},
        "optim": {"epochs": 4},
        "checkpoint": {"uri": str(root / "checkpoints")},
        "tracking": {"uri": f"sqlite:///{root / 'mlflow.db'}"},
    }
    config = parse_config(tree, origin="tiny")
    torch.manual_seed(1)
    network = build_network(config.model).eval()
    with pytest.MonkeyPatch.context() as patch:  # `own_home` is of one test
        patch.setenv("AGMM_HOME", str(root / "home"))
        client = tracking.connect(config.tracking.uri)
        run_id = tracking.create_run(client, config)
        store = committed_run(config, root / "checkpoints" / run_id, network, METRICS)
        manifest = load_manifest(Path(config.data.uri))
        uri = registry.publish(client, config, manifest, run_id, store, "tiny", note="Found by *hand*.")
    return SimpleNamespace(
        config=config, network=network, client=client, run_id=run_id, manifest=manifest, store=store, uri=uri
    )
