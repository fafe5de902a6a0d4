"""Every recipe takes 20 steps on a small sample of its own kind of data; narrow, but in all else as written."""

import math
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.data.build import build
from pipelines.data.saccade import simulated
from pipelines.data.samples import Sample, Source
from pipelines.data.sources import choose_frames
from pipelines.loop.worker import run
from pipelines.loop.world import Outside, World
from pipelines.recipe import load_recipe, recipe_names
from pipelines.storage import open_store

STEPS, BATCH = 20, 4
CLASSES = ("red", "green", "blue")
SIDES = {"fashion-mnist": 28, "cifar10": 32, "cifar100": 32, "imagenet": 250, "imagenette": 180}


def _picture(label, side, number):
    """Noise with one bright channel and one bright quarter, so that a moved picture makes events."""
    pixels = np.random.default_rng(number).integers(0, 80, (side, side, 3), dtype=np.uint8)
    pixels[: side // 2, : side // 2, label] += 150
    return pixels


def _source(name, side):
    counts = {"train": STEPS * BATCH, "val": 9}
    splits = {
        split: [Sample(i % 3, f"{split}/{i}", partial(_picture, i % 3, side, i)) for i in range(count)]
        for split, count in counts.items()
    }
    return Source(name, "folder", CLASSES, splits, 0)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    @cache
    def of(dataset, steps):
        source = _source(dataset, SIDES.get(dataset, 32))
        if dataset not in SIDES:
            source = choose_frames(simulated(source, dataset), steps, None, None)
        folder = tmp_path_factory.mktemp("data") / dataset
        build(source, folder)
        return folder

    return of


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_takes_twenty_steps(name, built, tmp_path):
    recipe = load_recipe(name)
    folder = built(recipe.data.dataset, recipe.model.time_steps if recipe.model.in_chans == 2 else 0)
    changes = {
        "data.uri": folder,
        "data.batch_size": BATCH,
        "data.loader": "torch",
        "data.threads": 1,
        "model.num_classes": len(CLASSES),
        "model.width": 4,
        "optim.max_steps": STEPS,
        "run.log_every": 10,
    }
    config = load_recipe(name, [f"{key}={value}" for key, value in changes.items()])
    rows, store = {}, open_store(str(tmp_path / "checkpoints"))
    outside = Outside(store, lambda row, step: rows.setdefault(step, {}).update(row), lambda _: None, lambda _: None)
    metrics = run(config, World(0, 1, torch.device("cpu")), outside, Path(folder), "test")
    assert max(rows) == STEPS
    assert all(math.isfinite(rows[step]["train/loss"]) for step in (10, STEPS))
    assert 0 <= metrics["top1"] <= 1
    assert checkpoints.committed(store)[-1] == f"attempt-0001-step-{STEPS:09d}"
