import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.config import parse_config
from pipelines.data.build import build
from pipelines.data.sources import open_source

torch.set_num_threads(1)  # tiny networks: threads that wait for each other cost more than they give


def make_image_folder(root, *, train=48, val=21, size=16):
    """An ImageFolder of three classes that a small network can tell apart: the bright channel, on noise."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for index in range(count):
            label = index % 3
            pixels = rng.integers(0, 90, (size, size, 3), dtype=np.uint8)
            pixels[..., label] += 120
            path = root / split / f"class{label}" / f"{index:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A built data set named `tiny`: 48 training and 21 validation images of 16 x 16, three classes."""
    root = tmp_path_factory.mktemp("tiny")
    source = open_source(make_image_folder(root / "images"), root, name="tiny")
    build(source, root / "built")
    return root / "built"


@pytest.fixture
def tiny_tree(tiny_data, tmp_path):
    """A recipe as a mapping: a narrow network on `tiny_data`, everything below `tmp_path`."""
    return {
        "name": "tiny",
        "data": {
            "dataset": "tiny",
            "uri": str(tiny_data),
            "resolution": 16,
            "batch_size": 12,
            "loader": "torch",
            "augment": {"crop": "pad", "padding": 2},
        },
        "model": {"arch": "agmm_resnet18", "num_classes": 3, "width": 4, "stem": "cifar", "time_steps": 2},
        "optim": {"lr": 0.1, "epochs": 4},
        "run": {"log_every": 2, "deterministic": True},
        "checkpoint": {"uri": str(tmp_path / "checkpoints"), "keep": 50},
        "tracking": {"uri": f"sqlite:///{tmp_path / 'mlflow.db'}", "register_as": "tiny"},
    }


@pytest.fixture
def tiny_config(tiny_tree):
    return parse_config(tiny_tree, origin="tiny")


@pytest.fixture(autouse=True)
def no_signals(monkeypatch):
    """No test sees the signals of another."""
    monkeypatch.setattr("pipelines.tracking.signals._asked", [])


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """Nothing of a test lands in the user's home or talks to the user's services."""
    for name in ("AGMM_STORE", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AGMM_CACHE_LIMIT", raising=False)
    monkeypatch.setenv("AGMM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AGMM_CACHE", str(tmp_path / "cache"))
