"""A cluster of three hosts that loses one in the middle of a run, through the commands of a user."""

import json
import re
import subprocess
import sys
import time

import pytest
import yaml

from tests.hosts import agmm, hosts, why_not

pytestmark = [
    pytest.mark.ray,
    pytest.mark.s3,
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(why_not()), reason=f"no hosts: {why_not()}"),
]

URI = "s3://agmm/data/tiny"
_PATIENCE_S = 400.0  # on a machine with much else to do, workers take minutes to start
_ASK = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient()
run = client.get_run(sys.argv[1])
steps = [metric.step for metric in client.get_metric_history(sys.argv[1], "train/loss")]
print(json.dumps({"status": run.info.status, "tags": run.data.tags, "metrics": run.data.metrics, "steps": steps}))
"""


@pytest.fixture
def cluster(tmp_path):
    with hosts(tmp_path / "home", workers=2) as made:
        yield made


@pytest.fixture
def recipe(tiny_tree, tmp_path):
    """Steps enough that a host is lost in the middle of them."""
    data = {**tiny_tree["data"], "uri": URI, "batch_size": 4, "loader": "ffcv"}
    run = {"workers": [1, 2], "log_every": 4, "resize_every": 5}
    tree = {**tiny_tree, "data": data, "optim": {"lr": 0.05, "epochs": 20}, "run": run, "checkpoint": {}}
    tree["tracking"] = {"register_as": "tiny"}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    return str(tmp_path / "tiny.yaml")


@pytest.fixture
def submit(cluster, tmp_path):
    """Submit a command from the office; gives the process, and the files that its output and messages go to."""
    processes = []

    def call(*words):
        out, err = tmp_path / "stdout", tmp_path / "stderr"
        command = cluster.office.command(sys.executable, "-m", "pipelines.cli", "submit", "--", *words)
        with out.open("w") as stdout, err.open("w") as stderr:
            processes.append(subprocess.Popen(command, stdout=stdout, stderr=stderr, env=cluster.variables()))
        return processes[-1], out, err

    yield call
    for process in processes:
        process.kill()
        process.wait()


def _wait(log, process, pattern, after=0):
    """The next match of a pattern in a log after so many characters, and where it ends."""
    deadline = time.monotonic() + _PATIENCE_S
    while not (found := re.search(pattern, log.read_text()[after:])):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return found, after + found.end()


def _in_mlflow(cluster, run_id):
    command = cluster.office.command(sys.executable, "-c", _ASK, run_id)
    ended = subprocess.run(command, capture_output=True, text=True, env=cluster.variables(), check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_a_job_goes_on_when_a_host_is_lost_and_the_run_tells_of_it(cluster, recipe, submit, tiny_data):
    agmm(cluster.office, cluster.variables(), "data", "push", str(tiny_data), URI)
    process, log, messages = submit("agmm", "train", recipe, "--json")
    _, at = _wait(log, process, "2 workers started")
    _, at = _wait(log, process, r"step 40/", at)
    kept, lost = cluster.workers
    caches = [host.disk / "cache" for host in (cluster.head, kept, lost)]
    for cache in caches:
        assert list(cache.glob("*/train.beton")), f"{cache} has not been staged to"
    cut = time.monotonic()
    lost.cut()
    _, at = _wait(log, process, "1 worker started", at)
    print(f"one worker again {time.monotonic() - cut:.1f} s after the cut")
    assert process.wait(_PATIENCE_S) == 0, log.read_text()
    assert cluster.states()[lost.node.address] == "DEAD"
    text = log.read_text()
    assert "Traceback" not in text
    assert f"rank {_rank_of(text, lost)} on {lost.name} ({lost.node.address}): its node was lost" in text
    result = json.loads(next(line for line in text.splitlines() if line.startswith('{"')))
    run = _in_mlflow(cluster, result["run_id"])
    print(json.dumps({key: value for key, value in run["tags"].items() if key.startswith("agmm.")}, indent=1))
    _tells_of_it(run, lost)
    assert result["model"] == "models:/tiny/1"
    job = re.search(r"Submitted (\S+):", messages.read_text())[1]
    shown = json.loads(agmm(cluster.office, cluster.variables(), "jobs", "show", job, "--json").stdout)
    assert (shown["status"], shown["run_status"], shown["run_id"]) == ("SUCCEEDED", "FINISHED", result["run_id"])


def _rank_of(text, host):
    """Either may be rank 0, which writes checkpoints."""
    return re.search(rf"starting again: rank (\d) on {host.name} ", text)[1]


def _tells_of_it(run, lost):
    """MLflow alone: how the run ended, all its steps, and which host was lost when."""
    assert run["status"] == "FINISHED"
    assert run["tags"]["agmm.attempt"] == "2"
    (line,) = run["tags"]["agmm.restarts"].splitlines()
    assert re.search(rf"UTC: rank \d on {lost.name} \({lost.node.address}\): its node was lost: ", line), line
    assert line.endswith("; went on with 1 worker")
    assert run["steps"] == list(range(4, 12 * 20 + 1, 4))
