"""The main job through real Ray workers, as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from pipelines.tracking import runs as tracking

pytestmark = [pytest.mark.ray, pytest.mark.timeout(480)]


def _agmm(*words):
    return [sys.executable, "-m", "pipelines.cli", *words]


@pytest.fixture
def recipe(tiny_tree, tmp_path):
    """A recipe file for two workers and FFCV where it is, long enough to be interrupted."""
    tree = {
        **tiny_tree,
        "data": {**tiny_tree["data"], "loader": "auto", "batch_size": 4},
        "optim": {"lr": 0.1, "epochs": 8},
        "run": {"workers": 2, "log_every": 10},
        "checkpoint": {**tiny_tree["checkpoint"], "every": 5, "keep": 3},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def _wait_for_checkpoint(folder, process):
    deadline = time.monotonic() + 240  # Ray runs its workers at a low priority
    while not list(folder.glob("*/attempt-*/COMMITTED")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _workers(process):
    return [child for child in psutil.Process(process.pid).children(recursive=True) if _is_worker(child)]


def _is_worker(process):
    try:
        return any("RayTrainWorker" in word for word in process.cmdline())
    except psutil.Error:
        return False


def test_a_killed_worker_does_not_end_the_run(recipe, tmp_path):
    command = _agmm("train", str(recipe), "--json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        _wait_for_checkpoint(tmp_path / "checkpoints", process)
        workers = _workers(process)
        assert len(workers) == 2
        workers[0].kill()
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "resumed at step" in err
    assert err.count("2 workers started in ") == 2
    result = json.loads(out)
    assert result["count"] == 21
    assert result["checkpoint"].endswith("-step-000000096")
    client = tracking.connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = client.get_run(result["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["val/top1"] == result["top1"]
    steps = [metric.step for metric in client.get_metric_history(result["run_id"], "val/top1")]
    assert sorted(set(steps)) == list(range(12, 97, 12))
    artifacts = {item.path for item in client.list_artifacts(result["run_id"], "figures")}
    assert artifacts == {f"figures/{name}.png" for name in ("curves", "phases", "flips", "firing", "gradients")}


def test_interrupted_then_resumed(recipe, tmp_path):
    """Ctrl-C leaves a KILLED run and no process; --resume goes on with the same run; a changed tree is refused.

    The first start says what a job says that may have been restarted: --resume --or-start.
    """
    command = _agmm("train", str(recipe), "--json", "--resume", "--or-start")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        _wait_for_checkpoint(tmp_path / "checkpoints", process)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "no run of 'tiny' to go on with: starting one" in err
    assert "interrupted: saved attempt-0001-step-" in err
    assert out == ""
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    client = tracking.connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert client.get_run(folder.name).info.status == "KILLED"

    refused = subprocess.run(
        _agmm("train", str(recipe), "--json", "--resume", "--or-start", "--set", "optim.lr=0.2"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "optim.lr: 0.1 -> 0.2" in refused.stderr
    assert client.get_run(folder.name).info.status == "KILLED"

    resumed = subprocess.run(
        _agmm("train", str(recipe), "--json", "--resume", "--set", "run.workers=1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed at step" in resumed.stderr
    assert json.loads(resumed.stdout)["run_id"] == folder.name
    finished = client.get_run(folder.name)
    assert finished.info.status == "FINISHED"
    assert "agmm.cause" not in finished.data.tags

    again = subprocess.run(
        _agmm("train", str(recipe), "--json", "--resume"), capture_output=True, text=True, check=False
    )
    assert again.returncode == 2
    assert "no unfinished run" in again.stderr


def test_a_foreseen_failure_ends_the_run_at_once_with_its_reason(recipe, tmp_path):
    """A restart would meet it again: none is tried, though three are allowed."""
    command = _agmm("train", str(recipe), "--set", "optim.lr=1e30")
    env = {**os.environ, "AGMM_LOG": "json"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert ended.returncode == 1, ended.stderr
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert (lines[-1]["level"], "NotFinite" in lines[-1]["message"]) == ("ERROR", True)
    assert len({line["run_id"] for line in lines if "run_id" in line}) == 1
    assert "NotFinite" in ended.stderr
    assert "on rank" in ended.stderr
    assert "starts again" not in ended.stderr
    assert "Traceback" not in ended.stderr
    client = tracking.connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert [run.info.status for run in runs] == ["FAILED"]
    assert "NotFinite" in runs[0].data.tags["agmm.cause"]
