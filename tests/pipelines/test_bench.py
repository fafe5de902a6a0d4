"""`agmm bench`: quick ones in small, and the real sizes under `slow`."""

import json
import subprocess
import sys

import pytest

from pipelines.benchmarks.checkpoint import Size, bench, measure
from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.storage import open_store

TINY = Size(width=4, classes=3, resolution=32)
NAMES = [
    "stall of a step, median",
    "stall of a step, p90",
    "stall of a step, first checkpoint",
    "step while one is stored, median",
    "excess of such a step, median",
    "all that a checkpoint delays training, median",
    "until it is committed and verified, median",
]


def test_a_small_measurement(tmp_path):
    said = []
    store = open_store(str(tmp_path / "run"))
    result = measure(store, tmp_path, 3, said.append, TINY)
    assert [row["name"] for row in result["rows"]] == NAMES
    for row in result["rows"]:
        assert row.keys() == {"name", "ours", "peer", "ratio", "unit"}
        assert row["ratio"] == (row["ours"] / row["peer"] if row["peer"] else None)
    assert all(row["ours"] > 0 for row in result["rows"][:4])
    json.dumps(result)
    assert said[0].startswith("a checkpoint of 0.")
    weights, momentum = result["megabytes"]["model"], result["megabytes"]["optimizer"]
    assert 0 < momentum < weights  # running statistics have none

    names = checkpoints.committed(store)
    assert len(names) == 2  # what is kept of four
    assert all(checkpoints.verify(store, name) for name in names)
    assert checkpoints.load(store, names[-1]).optimizer


def test_nothing_is_left_behind(tmp_path):
    bench(str(tmp_path / "there"), 2, lambda _: None, TINY)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("words", [["checkpoint", "--rounds", "1"], ["recovery", "--kills", "0"], ["flight"]])
def test_a_users_mistake(words, capsys):
    from pipelines import cli

    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", *words])
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def _bench(*words):
    command = [sys.executable, "-m", "pipelines.cli", "bench", *words, "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    return result, {row["name"]: row["ours"] for row in result["rows"]}


@pytest.mark.slow
def test_a_checkpoint_of_a_resnet18_with_momentum_stalls_a_step_for_at_most_20_ms():
    result, rows = _bench("checkpoint", "--rounds", "15")
    assert 93 < sum(result["megabytes"].values()) < 96
    assert rows["stall of a step, median"] <= 20


@pytest.mark.ray
@pytest.mark.slow
def test_recovery_is_measured_part_by_part():
    result, rows = _bench("recovery", "--kills", "1")
    assert list(rows) == [
        *("detect", "processes", "services", "loader", "network", "checkpoint", "first batch", "first step"),
        "total",
    ]
    assert len(result["kills"]) == 1
    assert sum(rows.values()) - rows["total"] == pytest.approx(rows["total"], abs=0.6)  # parts are said to 0.1 s
