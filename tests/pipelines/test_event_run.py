"""Event data through the loop, the registry and validation: one process, no Ray."""

from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from pipelines import registry
from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.config import parse_config
from pipelines.data.beton import BetonReader
from pipelines.data.build import build
from pipelines.data.events import Events, FrameRule
from pipelines.data.samples import Sample, Source
from pipelines.evaluate import evaluate_model
from pipelines.loop.worker import run
from pipelines.loop.world import Outside, World
from pipelines.storage import open_store
from pipelines.tracking import runs as tracking

SHAPE = (3, 2, 16, 16)


def _mostly(seed):
    """Nine of ten events are OFF for an even seed, ON for an odd one."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 16, (2, 600))
    return Events(np.arange(600), x, y, (rng.random(600) < 0.1) ^ bool(seed % 2), (16, 16))


@pytest.fixture(scope="module")
def changes(tmp_path_factory):
    """A built data set named `changes`: 32 training and 9 validation samples of 3 frames, two classes."""
    samples = [Sample(seed % 2, str(seed), partial(_mostly, seed)) for seed in range(41)]
    source = Source("changes", "test", ("off", "on"), {"train": samples[:32], "val": samples[32:]}, 0, FrameRule(3, 16))
    folder = tmp_path_factory.mktemp("changes") / "built"
    build(source, folder)
    return folder


@pytest.fixture
def config(changes, tmp_path):
    tree = {
        "name": "changes",
        "data": {
            "dataset": "changes",
            "uri": str(changes),
            "resolution": 16,
            "batch_size": 8,
            "augment": {"crop": "roll", "roll": 2},
        },
        "model": {
            "arch": "agmm_resnet18",
            "stem": "cifar",
            "num_classes": 2,
            "in_chans": 2,
            "width": 4,
            "time_steps": 3,
        },
        "optim": {"lr": 0.1, "epochs": 2},
        "checkpoint": {"uri": str(tmp_path / "checkpoints")},
        "tracking": {"uri": f"sqlite:///{tmp_path / 'mlflow.db'}"},
    }
    return parse_config(tree, origin="changes")


def test_a_network_learns_from_frames_and_is_served(config, changes, tmp_path):
    outside = Outside(open_store(str(tmp_path / "run")), *[lambda *_: None] * 3)
    metrics = run(config, World(0, 1, torch.device("cpu")), outside, Path(changes), "test")
    assert (metrics["count"], metrics["top1"]) == (9, 1.0)
    said = []
    result = evaluate_model(outside.store.uri, None, config.tracking.uri, said.append)
    assert (result["top1"], result["count"]) == (1.0, 9)

    client = tracking.connect(config.tracking.uri)
    card = registry.ModelCard(
        name="changes", model=config.model, data=config.data, frames=SHAPE, run_id=tracking.create_run(client, config)
    )
    weights = checkpoints.load(outside.store, checkpoints.committed(outside.store)[-1]).model
    served = mlflow.pyfunc.load_model(registry.register(client, card, weights, "changes"))
    reader = BetonReader(changes / "val.beton")
    frames = np.stack([reader.stored(index).reshape(SHAPE) for index in range(9)])
    assert served.predict(frames).argmax(1).tolist() == reader.labels.tolist()
    with pytest.raises(mlflow.exceptions.MlflowException, match="shape"):
        served.predict(frames[:, :2])
