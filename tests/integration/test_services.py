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

    refused = _agmm("submit", "--", "agmm", "train", recipe, "--set", "optim.rate=1", code=2)
    assert "optim.rate: unknown key" in refused.stdout

    _agmm("models", "promote", "tiny", "--to", "champion")
    for model in ("models:/tiny@champion", result["checkpoint"]):
        evaluated = json.loads(_agmm("evaluate", model, "--json").stdout)
        assert (evaluated["top1"], evaluated["count"]) == (result["top1"], 21)
    assert '"aliases": ["champion"]' in _agmm("models", "list", "--json").stdout

    _check_that_a_stopped_job_saves(recipe)

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


def _check_that_a_stopped_job_saves(recipe):
    words = ("agmm", "train", recipe, "--set", "optim.epochs=2000", "--set", "run.log_every=4")
    job = re.search(r"Submitted (\S+):", _agmm("submit", "--detach", "--", *words).stderr)[1]
    deadline = time.monotonic() + 120
    while "step 8/" not in (log := _agmm("jobs", "logs", job).stdout):
        assert time.monotonic() < deadline, log
    _agmm("jobs", "stop", job)
    while "interrupted: saved attempt-" not in (log := _agmm("jobs", "logs", job).stdout):
        assert time.monotonic() < deadline, log
