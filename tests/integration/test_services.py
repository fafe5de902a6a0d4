"""The whole road through the real services, by the commands that a user types."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import boto3
import psutil
import pytest
import yaml

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.timeout(600)]

ANY_PORT = [word for name in ("s3", "mlflow", "dashboard", "ray") for word in (f"--{name}-port", "0")]
_PATIENCE_S = 400.0  # on a machine with much else to do, workers take minutes to start


def _agmm(*words, code=0, **environment):
    command = [sys.executable, "-m", "pipelines.cli", *words]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, **environment}
    ended = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert ended.returncode == code, f"{words}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
    assert code == 0 or "Traceback" not in ended.stderr
    return ended


@pytest.fixture
def services(own_home):
    """`agmm up` and `agmm down` around a test; yields the lines to export as a mapping."""
    up = _agmm("up", *ANY_PORT)
    try:
        yield up.stdout
        running = [child for child in psutil.process_iter(["cmdline"]) if _is_ours(child)]
        assert running
    finally:
        _agmm("down")
    left = [child.info["cmdline"] for child in psutil.process_iter(["cmdline"]) if _is_ours(child)]
    assert not left


def _is_ours(process):
    return any(os.environ["AGMM_HOME"] in word for word in process.info["cmdline"] or [])


@pytest.fixture
def recipe(tiny_tree, tmp_path):
    """One epoch on two workers; checkpoints and tracking wherever the services say."""
    tree = {
        **tiny_tree,
        "optim": {"lr": 0.1, "epochs": 1},
        "run": {"workers": 2},
        "checkpoint": {},
        "tracking": {"register_as": "tiny"},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def test_submit_train_promote_evaluate(services, recipe, monkeypatch):
    submitted = _agmm("submit", "--", "agmm", "train", recipe, "--json")
    result = json.loads(next(line for line in submitted.stdout.splitlines() if line.startswith('{"count"')))
    assert result["checkpoint"].startswith("s3://agmm/checkpoints/")
    assert result["model"] == "models:/tiny/1"
    job = re.search(r"Submitted (\S+):", submitted.stderr)[1]
    shown = json.loads(_agmm("jobs", "show", job, "--json").stdout)
    assert (shown["status"], shown["run_id"], shown["run_status"]) == ("SUCCEEDED", result["run_id"], "FINISHED")
    assert (shown["checkpoint"], shown["recipe"]) == (result["checkpoint"], recipe)

    refused = _agmm("submit", "--", "agmm", "train", recipe, "--set", "optim.rate=1", code=2)
    assert "optim.rate: unknown key" in refused.stdout

    _agmm("models", "promote", "tiny", "--to", "champion")
    for model in ("models:/tiny@champion", result["checkpoint"]):
        evaluated = json.loads(_agmm("evaluate", model, "--json").stdout)
        assert (evaluated["top1"], evaluated["count"]) == (result["top1"], 21)
    assert '"aliases": ["champion"]' in _agmm("models", "list", "--json").stdout

    exported = dict(line.removeprefix("export ").split("=", 1) for line in services.splitlines() if "=" in line)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, exported[name])
    listed = boto3.session.Session().client("s3").list_objects_v2(Bucket="agmm", Prefix="checkpoints/")
    keys = {item["Key"].rsplit("/")[-1] for item in listed["Contents"]}
    assert {"COMMITTED", "manifest.json", "model.safetensors", "optimizer.safetensors"} <= keys

    foreign = {"AGMM_STORE": "s3://agmm", "AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "planted-secret"}
    wrong = _agmm("train", recipe, code=1, **foreign)
    assert "s3://agmm" in wrong.stderr
    assert "credentials" in wrong.stderr
    assert "planted-secret" not in wrong.stderr
    missing = _agmm("train", recipe, "--set", "checkpoint.uri=s3://no-such-bucket/x", code=1)
    assert "no-such-bucket" in missing.stderr


LONG = ("--set", "optim.epochs=2000", "--set", "run.log_every=4")


@pytest.mark.slow
def test_a_stopped_job_saves_and_one_of_two_resumes_runs(services, recipe):
    _check_that_a_stopped_job_saves(recipe)
    _check_that_one_of_two_resumes_runs(recipe)


def _check_that_a_stopped_job_saves(recipe):
    words = ("submit", "--detach", "--", "agmm", "train", recipe, *LONG)
    job = re.search(r"Submitted (\S+):", _agmm(*words).stderr)[1]
    assert f"The same command runs as {job} since" in _agmm(*words, code=2).stderr
    _wait_for_log(job, "step 8/")
    assert _agmm("jobs", "stop", "--wait", job).stdout == "stopped\n"
    assert "interrupted: saved attempt-" in _agmm("jobs", "logs", job).stdout


def _check_that_one_of_two_resumes_runs(recipe):
    """Two at once, with commands that differ where a resume may: the run is one, so one of them goes on."""
    jobs = []
    for every in (5, 6):
        words = ("agmm", "train", recipe, *LONG[:2], "--resume", "--set", f"run.log_every={every}")
        jobs.append(re.search(r"Submitted (\S+):", _agmm("submit", "--detach", "--", *words).stderr)[1])
    states = {}
    deadline = time.monotonic() + _PATIENCE_S
    while "FAILED" not in states.values():
        assert time.monotonic() < deadline, states
        states = {job: json.loads(_agmm("jobs", "show", job, "--json").stdout)["status"] for job in jobs}
    (refused,) = (job for job in jobs if states[job] == "FAILED")
    (runs,) = (job for job in jobs if job != refused)
    shown = json.loads(_agmm("jobs", "show", runs, "--json").stdout)
    assert (shown["status"], shown["run_status"]) == ("RUNNING", "RUNNING")
    log = _agmm("jobs", "logs", "--follow", refused, code=2).stdout
    assert f"Run {shown['run_id']} is being trained by another process: job {runs} (process " in log
    _wait_for_log(runs, "resumed at step")
    _agmm("jobs", "stop", "--wait", runs)


def _wait_for_log(job, text):
    deadline = time.monotonic() + _PATIENCE_S
    while text not in (log := _agmm("jobs", "logs", job).stdout):
        assert time.monotonic() < deadline, log
