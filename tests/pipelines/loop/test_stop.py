"""A run that is asked to save and stop, and goes on later, on as many workers or on others."""

import json
import os
import subprocess
import sys
import uuid
from itertools import chain
from pathlib import Path

import pytest
import torch
import yaml

from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.config import parse_config
from pipelines.errors import Stopped
from pipelines.loop.worker import run
from pipelines.loop.world import Outside, World
from pipelines.storage import open_store

SCRIPT = Path(__file__).with_name("elastic_run.py")


def _run(config, uri, stop_after=0):
    """The metrics of a run that may be asked to stop; `stop_after` counts steps and validation batches."""
    looks, saved = [], []
    outside = Outside(
        store=open_store(str(uri)),
        log=lambda row, step: None,
        progress=lambda item: None,
        on_epoch=lambda metrics: None,
        stop_requested=lambda: looks.append(None) or len(looks) == stop_after,
        saved=saved.append,
    )
    alone = World(rank=0, size=1, device=torch.device("cpu"))
    try:
        return run(config, alone, outside, Path(config.data.uri), "test"), saved
    except Stopped:
        return None, saved


def _newest(uri):
    store = open_store(str(uri))
    return checkpoints.load(store, checkpoints.committed(store)[-1])


# 4 steps an epoch and 2 batches of validation; the last step of an epoch is followed by the validation's look
@pytest.mark.parametrize(("stop_after", "offset", "step"), [(1, 1, 1), (3, 3, 3), (5, 4, 4), (6, 4, 4), (8, 2, 6)])
def test_stopped_and_resumed_equals_uninterrupted(tiny_tree, tmp_path, stop_after, offset, step):
    """In the middle of an epoch, and in a validation, which is done again."""
    config = parse_config({**tiny_tree, "optim": {"lr": 0.1, "epochs": 2}}, origin="test")
    none, (name,) = _run(config, tmp_path / "cut", stop_after)
    assert none is None
    assert name == f"attempt-0001-step-{step:09d}"
    position = _newest(tmp_path / "cut").position
    assert (position.offset, position.step) == (offset, step)
    metrics, saved = _run(config, tmp_path / "cut")
    assert not saved
    straight, _ = _run(config, tmp_path / "straight")
    for key in ("top1", "loss", "count", "flips", "best_top1"):
        assert metrics[key] == straight[key]
    one, other = _newest(tmp_path / "straight"), _newest(tmp_path / "cut")
    assert one.position == other.position
    assert all(torch.equal(one.model[key], other.model[key]) for key in one.model)
    assert all(torch.equal(one.optimizer[key], other.optimizer[key]) for key in one.optimizer)


def test_stopped_in_the_last_validation_of_a_run_cut_by_max_steps(tiny_tree, tmp_path):
    """All is trained, not all validated: the resume validates, and trains no further."""
    config = parse_config({**tiny_tree, "optim": {"lr": 0.1, "epochs": 2, "max_steps": 2}}, origin="test")
    _, saved = _run(config, tmp_path / "cut", stop_after=2)
    assert saved == ["attempt-0001-step-000000002"]
    metrics, _ = _run(config, tmp_path / "cut")
    assert metrics["count"] == 21
    straight, _ = _run(config, tmp_path / "straight")
    assert (metrics["top1"], metrics["loss"]) == (straight["top1"], straight["loss"])
    assert _newest(tmp_path / "cut").position.step == 2


@pytest.fixture
def launch(tiny_tree, tmp_path):
    """Run WORLD ranks from FOLDER's newest checkpoint; gives {(epoch, step): the global batch's ids} as taken."""
    tree = {**tiny_tree, "data": {**tiny_tree["data"], "batch_size": 5}, "optim": {"lr": 0.1, "epochs": 3}}

    def call(world, folder, stop_after=0):
        recipe = tmp_path / f"{folder}.yaml"
        recipe.write_text(yaml.safe_dump({**tree, "checkpoint": {"uri": str(tmp_path / folder), "keep": 50}}))
        records = [tmp_path / uuid.uuid4().hex for _ in range(world)]
        meeting = str(tmp_path / uuid.uuid4().hex)
        ranks = [
            subprocess.Popen(
                [
                    sys.executable,
                    str(SCRIPT),
                    str(recipe),
                    str(rank),
                    str(world),
                    meeting,
                    str(record),
                    str(stop_after),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
            )
            for rank, record in enumerate(records)
        ]
        _, said = ranks[0].communicate(timeout=100)
        assert ranks[0].returncode == (9 if stop_after else 0), said
        for other in ranks[1:]:
            other.kill() if stop_after else other.wait(20)
            other.communicate()
        return _global_batches(records)

    return call


def _global_batches(records):
    taken = [
        {(epoch, step): ids for epoch, step, ids in map(json.loads, each.read_text().splitlines())} for each in records
    ]
    return {at: list(chain(*(each.get(at, []) for each in taken))) for at in taken[0]}


@pytest.mark.slow
def test_two_then_one_then_two_workers_take_the_same_global_batches(launch):
    """Batches of 5, so 3 + 2 on two ranks and 5 on one; 9 steps an epoch, changed in the middle of two of them.

    The second part stops after 4 steps, a validation's 5 batches, and 3 steps.
    """
    straight = launch(2, "straight")
    first, second, third = launch(2, "cut", stop_after=5), launch(1, "cut", stop_after=4 + 5 + 3), launch(2, "cut")
    assert min(second) == (0, 5)
    assert min(third) == (1, 3)
    assert max(third) == (2, 8)
    assert first | second | third == straight
    for epoch in range(3):
        ids = [each for (at, _), batch in straight.items() if at == epoch for each in batch]
        assert len(ids) == len(set(ids)) == 45
