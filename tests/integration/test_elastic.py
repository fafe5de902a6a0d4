"""A run on a Ray cluster that loses a node and gets one again."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml
from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def cluster():
    """A head of one core; `add_node` is called by the test."""
    ray_cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        yield ray_cluster
    finally:
        ray_cluster.shutdown()


@pytest.fixture
def start(tiny_tree, tmp_path, cluster):
    """Start `agmm train` with one worker or two on the cluster; gives the process and a reader of what it says."""
    processes = []

    def call(**run):
        tree = {**tiny_tree, "data": {**tiny_tree["data"], "batch_size": 4}, "optim": {"lr": 0.05, "epochs": 2000}}
        tree["run"] = {"workers": [1, 2], "resize_every": 2, "log_every": 20, "cpus_per_worker": 1, **run}
        tree["checkpoint"] = {**tree["checkpoint"], "keep": 2}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
        log = tmp_path / "stderr"
        env = {**os.environ, "RAY_ADDRESS": cluster.address, "GLOO_SOCKET_IFNAME": "lo"}
        with log.open("w") as stderr:
            command = [sys.executable, "-m", "pipelines.cli", "train", str(tmp_path / "recipe.yaml")]
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, env=env))
        return processes[-1], log

    yield call
    for process in processes:
        process.kill()
        process.wait()


def _wait(log, process, pattern, after=0, seconds=120):
    """The next match of a pattern in what the run has said after so many characters, and where it ends."""
    deadline = time.monotonic() + seconds
    while not (found := re.search(pattern, log.read_text()[after:])):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return found, after + found.end()


def test_a_run_goes_on_with_fewer_workers_and_then_with_more(cluster, start):
    node = cluster.add_node(num_cpus=1)
    process, log = start()
    _, at = _wait(log, process, "2 workers started")
    _, at = _wait(log, process, r"step 40/", at)
    cluster.remove_node(node, allow_graceful=False)
    began = time.monotonic()
    _, at = _wait(log, process, "1 worker started", at)
    fewer = time.monotonic() - began
    _, at = _wait(log, process, r"epoch \d+/", at)
    began = time.monotonic()
    cluster.add_node(num_cpus=1)
    _, at = _wait(log, process, "going on with 2 workers", at)
    start_of_resize = at
    resumed, at = _wait(log, process, r"resumed at step (\d+) ", at)
    saved = re.findall(r"checkpoint \S+-step-0*(\d+)\n", log.read_text()[start_of_resize:at])
    assert resumed[1] == saved[-1], "a resize on purpose loses no step"
    _, at = _wait(log, process, "2 workers started", at)
    print(f"fewer after {fewer:.1f} s, more after {time.monotonic() - began:.1f} s")
    _, at = _wait(log, process, r"epoch \d+/", at)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    saved, _ = _wait(log, process, r"interrupted: saved attempt-\d+-step-0*(\d+)", at)
    assert int(saved[1]) > int(resumed[1])
    assert "Traceback" not in log.read_text()


def test_a_preempted_node_is_left_in_time_and_is_no_failure(cluster, start):
    cluster.add_node(num_cpus=1)
    process, log = start(max_failures=0)
    _, at = _wait(log, process, "2 workers started")
    _, at = _wait(log, process, r"step 40/", at)
    _drain(cluster, seconds=60)
    began = time.monotonic()
    _, at = _wait(log, process, r"takes the node of rank \d away", at)
    resumed, at = _wait(log, process, r"resumed at step (\d+) ", at)
    saved = re.findall(r"checkpoint \S+-step-0*(\d+)\n", log.read_text()[:at])
    assert resumed[1] == saved[-1]
    _, at = _wait(log, process, "1 worker started", at)
    assert time.monotonic() - began < 60, "it waited for the node's end"


def _drain(cluster, seconds):
    """Tell Ray that the second node is going to be taken away."""
    (node,) = cluster.worker_nodes
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", cluster.address]
    options = {
        "node-id": node.node_id,
        "reason": "DRAIN_NODE_REASON_PREEMPTION",
        "reason-message": "spot",
        "deadline-remaining-seconds": seconds,
    }
    ended = subprocess.run([*command, *(f"--{k}={v}" for k, v in options.items())], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_a_run_waits_for_the_workers_that_it_needs(cluster, start):
    """It says so, goes on once there is room, and can be stopped while it waits."""
    process, log = start(workers=[2, 3])
    _, at = _wait(log, process, "waiting: the Ray cluster has no room for 2 workers")
    node = cluster.add_node(num_cpus=1)
    _, at = _wait(log, process, "2 workers started", at)
    _, at = _wait(log, process, r"epoch \d+/", at)
    cluster.remove_node(node, allow_graceful=False)
    _wait(log, process, "waiting: the Ray cluster has no room for 2 workers", at)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    assert "Traceback" not in log.read_text()
