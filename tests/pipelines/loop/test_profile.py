"""Traces of real training steps: what is in them, and that nothing else is changed by them."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from pipelines.config import ProfileConfig, parse_config
from pipelines.errors import ServiceError
from pipelines.loop.profile import Profiler
from pipelines.loop.worker import run
from pipelines.loop.world import Outside, World
from pipelines.storage import FolderStore, open_store
from tests.timings import without_timings

ALONE = World(0, 1, torch.device("cpu"))


def _train(tree, folder, **profile):
    config = parse_config({**tree, "run": {**tree["run"], "profile": profile}}, origin="test")
    said = []
    outside = Outside(open_store(str(folder)), lambda row, step: None, said.append, lambda metrics: None)
    metrics = run(config, ALONE, outside, Path(config.data.uri), "test")
    return without_timings(metrics), [item["say"] for item in said if "say" in item]


def _trace(path):
    with gzip.open(path, "rt") as file:
        return json.load(file)["traceEvents"]


def test_a_trace_holds_the_steps_asked_for_and_changes_no_result(tiny_tree, tmp_path):
    tiny_tree["optim"] = {"lr": 0.1, "epochs": 2}
    plain, _ = _train(tiny_tree, tmp_path / "plain")
    traced, said = _train(tiny_tree, tmp_path / "traced", steps=2, after=3)
    assert traced == plain
    place = f"{tmp_path / 'traced'}/profiles/step-000000005-rank-0"
    assert f"profile {place}.trace.json.gz, and .operators.txt" in said
    assert len(list((tmp_path / "traced" / "profiles").iterdir())) == 2
    names = [event.get("name", "") for event in _trace(f"{place}.trace.json.gz")]
    assert len({name for name in names if name.startswith("ProfilerStep")}) == 2
    for operator in ("agmm::block_end", "agmm::block_end_backward", "aten::convolution_backward"):
        assert operator in names
        assert names.count(operator) % 2 == 0
    table = Path(f"{place}.operators.txt").read_text()
    assert "agmm::block_end" in table
    assert "Self CPU" in table


def test_a_run_that_ends_early_keeps_what_it_has_traced(tiny_tree, tmp_path):
    tiny_tree["optim"] = {"lr": 0.1, "epochs": 1, "max_steps": 3}
    _train(tiny_tree, tmp_path / "a", steps=100, after=1)
    (path,) = (tmp_path / "a" / "profiles").glob("*.trace.json.gz")
    assert path.name == "step-000000003-rank-0.trace.json.gz"
    assert "agmm::block_end" in {event.get("name") for event in _trace(path)}


@pytest.mark.parametrize(("rank", "ranks", "traces"), [(0, "first", 1), (1, "first", 0), (1, "all", 1)])
def test_which_ranks_trace(tmp_path, rank, ranks, traces):
    outside = Outside(FolderStore(tmp_path), lambda row, step: None, lambda item: None, lambda metrics: None)
    profiler = Profiler(ProfileConfig(steps=1, after=1, ranks=ranks), World(rank, 2, torch.device("cpu")), outside)
    for step in (1, 2, 3):
        torch.ones(2) + 1
        profiler.step(step)
    profiler.close()
    assert len(list(tmp_path.glob(f"profiles/step-000000002-rank-{rank}.trace.json.gz"))) == traces
    assert len(list(tmp_path.rglob("*.gz"))) == traces


def test_a_store_that_fails_costs_the_trace_alone(tmp_path):
    class Full(FolderStore):
        def put(self, source, key):
            raise ServiceError("the disk is full")

    said = []
    outside = Outside(Full(tmp_path), lambda row, step: None, said.append, lambda metrics: None)
    profiler = Profiler(ProfileConfig(steps=1, after=1), ALONE, outside)
    for step in (1, 2):
        profiler.step(step)
    profiler.close()
    assert said == [{"say": "the profile of step 2 could not be stored: the disk is full"}]
