"""Generator states need no storing: what draws from one in a step draws the same after a resume."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.config import parse_config
from pipelines.loop import worker
from pipelines.loop.generators import seed_generators
from pipelines.loop.worker import run
from pipelines.loop.world import Outside, World
from pipelines.network import build_network
from pipelines.storage import open_store
from tests.timings import without_timings


def _draws(seed, step, rank):
    seed_generators(seed, step, rank)
    return random.random(), np.random.random(), torch.rand(()).item(), torch.nn.functional.dropout(torch.ones(64)).sum()


def test_draws_are_a_function_of_seed_step_and_rank():
    assert _draws(3, 5, 0) == _draws(3, 5, 0)
    for other in ((4, 5, 0), (3, 6, 0), (3, 5, 1), (5, 3, 0)):
        pairs = list(zip(_draws(3, 5, 0), _draws(*other), strict=True))[:3]
        assert all(one != another for one, another in pairs), other


def test_ranks_and_steps_never_share_a_seed():
    seen = set()
    for step in range(50):
        for rank in range(4):
            seed_generators(0, step, rank)
            seen.add((random.random(), np.random.random(), torch.rand((), dtype=torch.float64).item()))
    assert len(seen) == 200
    assert all(len({draws[kind] for draws in seen}) == 200 for kind in range(3))


class _Cut(Exception):
    """Stands for a kill."""


@pytest.fixture
def train(tiny_tree, tmp_path, monkeypatch):
    """Train 10 steps, 4 an epoch, with dropout before the head; gives the rows that were logged, by step."""

    def build(config):
        network = build_network(config)
        network.head = torch.nn.Sequential(torch.nn.Dropout(0.5), network.head)
        return network

    monkeypatch.setattr("pipelines.network.build_network", build)
    tree = {**tiny_tree, "optim": {"lr": 0.1, "epochs": 4, "max_steps": 10}, "run": {"log_every": 1}}

    def call(folder, die_at=0):
        tree["checkpoint"] = {"uri": str(tmp_path / folder), "keep": 50, "every": 3}
        config, rows = parse_config(tree, origin="test"), {}

        def show(item):
            if item.get("step") == die_at:
                raise _Cut

        outside = Outside(
            open_store(str(tmp_path / folder)),
            lambda row, step: rows.setdefault(step, {}).update(row),
            show,
            lambda metrics: None,
        )
        alone = World(rank=0, size=1, device=torch.device("cpu"))
        if die_at:
            with pytest.raises(_Cut):
                run(config, alone, outside, Path(config.data.uri), "test")
        else:
            run(config, alone, outside, Path(config.data.uri), "test")
        return {step: without_timings(row) for step, row in rows.items()}

    return call


def _final(folder):
    store = open_store(str(folder))
    return checkpoints.load(store, checkpoints.committed(store)[-1])


@pytest.mark.parametrize("die_at", [4, 8])
def test_a_network_with_dropout_goes_on_as_if_nothing_had_been(train, tmp_path, die_at):
    straight = train("straight")
    train("cut", die_at=die_at)
    after = train("cut")
    assert 4 <= min(after) <= die_at
    assert after == {step: row for step, row in straight.items() if step >= min(after)}
    one, other = _final(tmp_path / "straight"), _final(tmp_path / "cut")
    assert all(torch.equal(one.model[key], other.model[key]) for key in one.model)


def test_flips_of_an_epoch_that_was_cut_are_those_of_the_whole_epoch(train):
    """Three of the first epoch's four steps are the killed process's: their flips come from the checkpoint."""
    straight = train("straight")
    train("cut", die_at=4)
    after = train("cut")
    assert min(after) == 4
    flips = {key: value for key, value in straight[4].items() if key.startswith(("flips/", "flips_per_step/"))}
    assert flips["flips_per_step/total"] > 0
    assert flips == {key: after[4][key] for key in flips}


def test_without_seeding_a_cut_would_show(train, monkeypatch):
    """That the other tests can fail."""
    monkeypatch.setattr(worker, "seed_generators", lambda seed, step, rank: None)
    straight = train("straight")
    train("cut", die_at=4)
    after = train("cut")
    assert after[10]["train/loss"] != straight[10]["train/loss"]
