"""A real run of two workers in which one of them hangs, or is slow: it is named in the log and in the run."""

import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from pipelines.on_ray.watchdog import TAG
from pipelines.tracking import runs as tracking

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(280)]


@pytest.fixture
def training(tiny_tree, tmp_path, monkeypatch):
    """Start a long run of two workers under `AGMM_FAULTS`; it is interrupted when the test ends."""
    started = []

    def start(faults=""):
        monkeypatch.setenv("AGMM_FAULTS", faults)
        tree = {
            **tiny_tree,
            "data": {**tiny_tree["data"], "batch_size": 4},
            "optim": {"lr": 0.1, "epochs": 2000},
            "run": {"workers": 2, "log_every": 10},
            "checkpoint": {**tiny_tree["checkpoint"], "keep": 2},
        }
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(tree))
        started.append(_Training(recipe, tmp_path))
        return started[-1]

    yield start
    for each in started:
        each.interrupt()


class _Training:
    def __init__(self, recipe, folder):
        self._folder, self._log = folder, folder / "stderr.txt"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.cli", "train", str(recipe)], stdout=subprocess.DEVNULL, stderr=log
            )

    def wait_for(self, pattern, seconds=120):
        """The first match in the log, and after how many seconds from now it was there."""
        started = time.monotonic()
        while not (match := re.search(pattern, self._log.read_text())):
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() - started < seconds, self._log.read_text()
            time.sleep(0.2)
        print(f"{match[0]}: after {time.monotonic() - started:.1f} s")
        return match

    def workers(self):
        family = psutil.Process(self.process.pid).children(recursive=True)
        alive = [each for each in family if each.status() != psutil.STATUS_ZOMBIE]  # the scribe's starter is one
        return [each for each in alive if any("RayTrainWorker" in word for word in each.cmdline())]

    def tag(self, pattern, seconds=30):
        """The watchdog's tag once it matches."""
        client = tracking.connect(f"sqlite:///{self._folder / 'mlflow.db'}")
        (run_folder,) = (self._folder / "checkpoints").iterdir()
        deadline = time.monotonic() + seconds
        while not re.search(pattern, value := client.get_run(run_folder.name).data.tags.get(TAG, "")):
            assert time.monotonic() < deadline, value
            time.sleep(0.2)
        return value

    def interrupt(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(timeout=60)


def test_a_stopped_rank_is_named_within_two_minutes(training):
    run = training()
    run.wait_for(r"step 20/")
    victim = run.workers()[0]
    victim.suspend()
    try:
        found = run.wait_for(rf"watchdog: rank (\d) \(host \S+, pid {victim.pid}\) hangs: .* step \d+")
        assert f"rank {found[1]} " in run.tag(rf"^rank \d \(.* pid {victim.pid}\) hangs")
    finally:
        victim.resume()
    run.wait_for(rf"watchdog: rank {found[1]} moves again", seconds=30)
    run.tag(r"^over: ")
    assert run.process.poll() is None


def test_a_rank_that_is_five_times_slower_is_named_within_two_minutes(training):
    run = training("data.batch.rank1=sleep:0.5")
    run.wait_for(r"step 10/")
    run.wait_for(r"watchdog: rank 1 \(.*\) is slow: .* takes \d+ ms, the others' \d+ ms")
    run.tag(r"^rank 1 .* is slow")
