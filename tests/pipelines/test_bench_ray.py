"""`agmm bench ray`: a launch under torchrun in small; both, under `slow`."""

import json

import pytest

from pipelines.benchmarks import small_data
from pipelines.benchmarks.launching import Size, launch
from pipelines.benchmarks.ray_train import bench
from pipelines.errors import ServiceError

TINY = Size(steps=8, width=4, resolution=16, batch_size=4, window=2, warm_up=1)


def test_a_launch_under_torchrun(tmp_path):
    data = small_data(tmp_path, train=TINY.steps * TINY.batch_size)
    found = launch("torchrun", tmp_path / "launch", data, TINY)
    assert len(found.steps) == TINY.steps / TINY.window - TINY.warm_up
    assert min(found.steps) > 0
    assert found.startup > 0
    assert found.processor > 0
    assert sorted(path.name for path in (tmp_path / "launch").glob("worker-*")) == ["worker-0", "worker-1"]


def test_a_launch_that_fails_is_told(tmp_path):
    with pytest.raises(ServiceError, match="A launch ended with 1"):
        launch("torchrun", tmp_path / "launch", tmp_path / "nothing", TINY)


@pytest.mark.ray
@pytest.mark.slow
def test_both_in_turns():
    result = bench(2, lambda _: None, TINY)
    json.dumps(result)
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == [
        "a step, median",
        "a step, fastest tenth",
        "a step, processors of the workers",
        "cores busy beside the workers",
        "until the first step",
    ]
    assert all(row["ours"] > 0 and row["ratio"] > 0 for name, row in rows.items() if "beside" not in name)
    assert [len(launches) for launches in result["launches"].values()] == [2, 2]
