"""What MLflow says of a run whose driver is asked to end, or is killed."""

import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from pipelines.tracking import runs as tracking

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(240)]
WITHIN_S = 30


@pytest.fixture
def recipe(tiny_tree, tmp_path):
    """A recipe file that trains for longer than the test looks."""
    tree = {
        **tiny_tree,
        "data": {**tiny_tree["data"], "batch_size": 4},
        "optim": {"lr": 0.1, "epochs": 2000},
        "checkpoint": {**tiny_tree["checkpoint"], "every": 5, "keep": 3},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize(
    ("number", "state", "cause"),
    [(signal.SIGTERM, "KILLED", "SIGTERM"), (signal.SIGKILL, "FAILED", "DriverLost")],
    ids=["asked", "killed"],
)
def test_a_run_whose_driver_ends_has_its_state_and_cause_in_time(recipe, tmp_path, number, state, cause):
    command = [sys.executable, "-m", "pipelines.cli", "train", str(recipe)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as driver:
        _wait_until(lambda: list((tmp_path / "checkpoints").glob("*/attempt-*/COMMITTED")), 120)
        family = psutil.Process(driver.pid).children(recursive=True)
        sent = time.monotonic()
        driver.send_signal(number)
        driver.wait(timeout=60)
    client = tracking.connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (folder,) = (tmp_path / "checkpoints").iterdir()
    _wait_until(lambda: client.get_run(folder.name).info.status != "RUNNING", WITHIN_S - (time.monotonic() - sent))
    run = client.get_run(folder.name)
    assert run.info.status == state
    assert run.data.tags["agmm.cause"].startswith(cause)
    _, alive = psutil.wait_procs(family, timeout=30)
    names = [each.name() for each in alive]
    for each in alive:
        each.kill()
    assert not [name for name in names if not name.endswith("Agent")]  # two of Ray's own outlive a killed driver


def _wait_until(holds, seconds):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)
