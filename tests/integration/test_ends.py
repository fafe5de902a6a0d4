"""How runs end that do not reach their end: the head is lost, a worker is lost for good, there is no room."""

import subprocess
import sys
import time

import psutil
import pytest
import yaml

from pipelines.tracking import runs as tracking

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def train(tiny_tree, tmp_path):
    """Start `agmm train` on a Ray of its own; gives the process once it trains."""
    processes = []

    def call(until="step 20/", **run):
        tree = {**tiny_tree, "optim": {"lr": 0.05, "epochs": 2000}, "run": {"log_every": 20, **run}}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
        with (tmp_path / "stderr").open("w") as stderr:
            command = [sys.executable, "-m", "pipelines.cli", "train", str(tmp_path / "recipe.yaml")]
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr))
        deadline = time.monotonic() + 120
        while until not in (said := (tmp_path / "stderr").read_text()):
            assert processes[-1].poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.1)
        return processes[-1]

    yield call
    for process in processes:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for each in [process, *family]:
            each.kill()
        process.wait()


def _children(process, name):
    return [each for each in psutil.Process(process.pid).children(recursive=True) if _is(each, name)]


def _is(process, name):
    try:
        return name in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _ended(process, tmp_path):
    """Seconds until the end, and the run's cause in MLflow."""
    began = time.monotonic()
    assert process.wait(90) == 1
    took = time.monotonic() - began
    said = (tmp_path / "stderr").read_text()
    assert "Traceback" not in said
    client = tracking.connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.info.status == "FAILED"
    return took, run.data.tags["agmm.cause"]


def test_a_lost_head_ends_the_run_in_time(train, tmp_path):
    process = train()
    (head,) = _children(process, "gcs_server")
    workers = _children(process, "RayTrainWorker")
    head.kill()
    took, cause = _ended(process, tmp_path)
    assert took < 30
    assert "The Ray head at" in cause
    assert "is gone" in cause
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


def test_a_lost_controller_ends_the_run_in_words(train, tmp_path):
    process = train()
    (controller,) = _children(process, "ray::TrainController")
    workers = _children(process, "RayTrainWorker")
    controller.kill()
    took, cause = _ended(process, tmp_path)
    assert took < 30
    assert cause.startswith("ServiceError: Ray's controller of the run is gone, ")
    assert "--resume" in cause
    assert len(cause) < 600
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


def test_a_worker_that_is_lost_too_often_is_told_in_words(train, tmp_path):
    process = train(max_failures=0)
    (worker,) = _children(process, "RayTrainWorker")
    worker.kill()
    took, cause = _ended(process, tmp_path)
    assert took < 30
    assert "rank 0: its process was lost: " in cause
    assert len(cause) < 600


def test_a_bug_ends_the_run_with_its_type_and_text(train, tmp_path, monkeypatch):
    """After as many restarts as are allowed; the last error counts."""
    monkeypatch.setenv("AGMM_FAULTS", "worker.start=error")
    process = train(until="a worker stopped (InjectedFault: injected at worker.start)", max_failures=1)
    _, cause = _ended(process, tmp_path)
    assert (tmp_path / "stderr").read_text().count("a worker stopped") == 2
    assert cause.endswith("rank 0: InjectedFault: injected at worker.start")
