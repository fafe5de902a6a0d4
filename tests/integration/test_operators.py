"""What Prometheus sees of a training on the Ray head of `agmm up`, scraped as it would do it."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from cluster.settings import load_services
from pipelines.on_ray.metrics import METRICS, exported_name

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow, pytest.mark.timeout(900)]

ANY_PORT = [word for name in ("s3", "mlflow", "dashboard", "ray") for word in (f"--{name}-port", "0")]
ONLY_WHERE_STAGED = {"agmm_data_cache_bytes"}


def _agmm(*words):
    return [sys.executable, "-m", "pipelines.cli", *words]


@pytest.fixture
def targets(own_home):
    """The addresses that Ray tells Prometheus, in the file that it writes for it."""
    subprocess.run(_agmm("up", "--metrics", *ANY_PORT), check=True, capture_output=True)
    try:
        running = load_services(Path(os.environ["AGMM_HOME"]))
        assert running is not None
        found = running.metrics_targets
        deadline = time.monotonic() + 60
        while not found.exists():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield lambda: [target for group in json.loads(found.read_text()) for target in group["targets"]]
    finally:
        subprocess.run(_agmm("down"), check=True, capture_output=True)


def _scrape(targets):
    """Samples of ours, by name."""
    samples = {}
    for target in targets:
        for family in text_string_to_metric_families(_page(target)):
            for sample in family.samples:
                if sample.name.startswith("ray_agmm_"):
                    samples.setdefault(sample.name, []).append(sample)
    return samples


def _page(target):
    """Empty where nobody answers: while Ray's agent starts, and of ports that are closed, whose number is none."""
    with suppress(OSError, OverflowError), urllib.request.urlopen(f"http://{target}/metrics", timeout=30) as answer:
        return answer.read().decode()
    return ""


def test_a_run_is_seen_while_it_trains(targets, tiny_tree, tmp_path):
    path = tmp_path / "tiny.yaml"
    run = {"workers": 2, "log_every": 2}
    path.write_text(yaml.safe_dump({**tiny_tree, "optim": {"lr": 0.1, "epochs": 2000}, "run": run, "checkpoint": {}}))
    wanted = {exported_name(name) for name in METRICS if name not in ONLY_WHERE_STAGED}
    shown = tmp_path / "stderr.txt"
    with shown.open("w") as stderr, subprocess.Popen(_agmm("train", str(path)), stderr=stderr) as process:
        try:
            deadline = time.monotonic() + 600
            while not wanted <= (samples := _scrape(targets())).keys():
                assert process.poll() is None, shown.read_text()
                assert time.monotonic() < deadline, wanted - samples.keys()
                time.sleep(1)
        finally:
            process.terminate()
            process.wait(timeout=240)
    assert {target.split(":")[0] for target in targets()} == {"127.0.0.1"}
    for found in samples.values():
        assert {sample.labels["recipe"] for sample in found} == {"tiny"}
        assert len({sample.labels["run"] for sample in found}) == 1
    assert samples["ray_agmm_workers"][0].value == 2
    assert samples["ray_agmm_attempt"][0].value == 1
    assert samples["ray_agmm_loss"][0].value > 0 < samples["ray_agmm_images_per_second"][0].value
    assert 0 <= time.time() - samples["ray_agmm_checkpoint_timestamp_seconds"][0].value < 300
    phases = samples["ray_agmm_phase_seconds_total"]
    assert {sample.labels["rank"] for sample in phases} == {"0", "1"}
    assert {"load", "forward", "backward", "exchange", "update"} <= {sample.labels["phase"] for sample in phases}
