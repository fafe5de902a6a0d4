"""A run whose MLflow server is away for a minute, as a user runs it."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest
import yaml

from pipelines.tracking import runs as tracking

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(800)]
AWAY_S = 60.0


def _wait(what, timeout=120.0):
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < timeout
        time.sleep(0.1)


def _answers(uri):
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=2) as answer:
        return answer.status == 200
    return False


@pytest.fixture
def server(tmp_path):
    """`start()` and `stop()` of an MLflow server whose data base stays."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri, running = f"http://127.0.0.1:{port}", []
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    places = [f"--backend-store-uri=sqlite:///{tmp_path}/server.db", f"--artifacts-destination={tmp_path}/artifacts"]

    def start():
        with (tmp_path / "server.log").open("ab") as log:
            running.append(subprocess.Popen([*command, *places], stdout=log, stderr=log))
        _wait(lambda: _answers(uri))

    def stop():
        for process in [running[-1], *psutil.Process(running[-1].pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.kill()
        running.pop().wait()

    start()
    yield uri, start, stop
    if running:
        stop()


def test_a_minute_without_mlflow_costs_no_step_and_no_row(server, tiny_tree, tmp_path):
    """Metrics of every step are there afterwards, none twice, and the steps did not wait."""
    uri, start, stop = server
    epochs, per_epoch = 600, 48 // 12
    tree = {
        **tiny_tree,
        "optim": {"lr": 0.1, "epochs": epochs},
        "run": {"log_every": per_epoch, "max_failures": 0},
        "checkpoint": {**tiny_tree["checkpoint"], "keep": 3},
        "tracking": {"uri": uri, "register_as": "tiny"},
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    said = tmp_path / "said.log"
    command = [sys.executable, "-m", "pipelines.cli", "train", str(recipe), "--json"]
    with (
        said.open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ) as driver,
    ):
        _wait(lambda: "epoch 3:" in said.read_text() or driver.poll() is not None)
        stop()
        stopped = time.monotonic()
        steps_before = said.read_text().count("  step ")
        time.sleep(AWAY_S)
        steps_away = said.read_text().count("  step ") - steps_before
        start()
        steps_back = said.read_text().count("  step ")
        away = time.monotonic() - stopped
        out, _ = driver.communicate(timeout=400)
    assert driver.returncode == 0, said.read_text()
    assert steps_away > 50, f"{steps_away} lines in {away:.0f} s without MLflow"
    assert steps_back < epochs, "the run was over before MLflow came back"
    result = json.loads(out)
    client = tracking.connect(uri)
    for key in ("train/loss", "val/top1"):
        steps = [metric.step for metric in client.get_metric_history(result["run_id"], key)]
        assert steps == list(range(per_epoch, epochs * per_epoch + 1, per_epoch))
    assert client.get_run(result["run_id"]).info.status == "FINISHED"
    assert not list((tmp_path / "home" / "spool").iterdir())
