"""200 secrets where a user could put them, real commands that succeed and fail, and a look into all that these left."""

import itertools
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

_ODD = ("", "/+=", "%2F", "!$&", "~;*()", "ü")
# Variables that the libraries below read, and that others of a user's shell have.
_READ = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN", "HF_TOKEN")
_NAMES = [*_READ, *(f"SERVICE_{number}_PASSWORD" for number in range(60)), *(f"APP_{n}_API_KEY" for n in range(35))]


def _secret(odd=""):
    return f"{secrets.token_hex(8)}{odd}{secrets.token_hex(8)}"


@pytest.fixture
def planted(monkeypatch):
    """100 secrets in the environment, by the halves that no odd character changes, and 100 more for addresses."""
    for name, odd in zip(_NAMES, itertools.cycle(_ODD), strict=False):
        monkeypatch.setenv(name, _secret("" if name == "RAY_AUTH_TOKEN" else odd))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA0123456789ABCDEF")
    monkeypatch.setenv("https_proxy", f"http://me:{_secret()}@127.0.0.1:9")
    known = [os.environ[name] for name in _NAMES] + [_secret("/" if number % 2 else "") for number in range(100)]
    assert len(set(known)) == 200
    return known


@pytest.fixture
def ray_folder(monkeypatch):
    """Where Ray keeps its session; the names of its sockets allow no long one."""
    folder = tempfile.mkdtemp(prefix="agmm-", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    yield Path(folder)
    shutil.rmtree(folder)


def _agmm(*words, code, **environment):
    command = [sys.executable, "-m", "pipelines.cli", *words]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=200)
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def _halves(known):
    """What of a secret is found whatever its odd characters became."""
    return {half.encode() for each in known for half in (each[:16], each[-16:])}


def _leaks(known, folders):
    found = []
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        found += [str(path) for half in _halves(known) if half in content]
    return found


def _failing(recipe, tree, tmp_path, spare):
    """Commands that fail before a worker starts; what they said."""
    said = _agmm("train", str(recipe), code=1, RAY_ADDRESS="127.0.0.1:9")
    unreached = {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}
    said += _agmm("data", "stage", "s3://bucket/prefix", code=1, **unreached)
    said += _agmm("models", "list", code=1, MLFLOW_TRACKING_URI="http://127.0.0.1:9", MLFLOW_TRACKING_TOKEN="x\ny" * 9)
    said += _agmm("submit", "--address", "http://127.0.0.1:9", "--", "true", code=1)
    leaky = tmp_path / "leaky.yaml"
    experiment = f"https://me:{next(spare)}@mlflow.example/x"
    leaky.write_text(yaml.safe_dump({**tree, "tracking": {**tree["tracking"], "experiment": experiment}}))
    said += _agmm("train", str(leaky), code=2)
    leaky.unlink()
    return said


def _recipe(tree, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**tree, "optim": {"lr": 0.1, "epochs": 1}, "run": {"workers": 1}}))
    return path


def test_commands_that_fail_show_and_keep_no_secret(planted, tiny_tree, tmp_path):
    said = _failing(_recipe(tiny_tree, tmp_path), tiny_tree, tmp_path, iter(planted[100:]))
    assert _leaks(planted, [tmp_path]) == []
    assert [half for half in _halves(planted) if half in said.encode()] == []


@pytest.mark.slow
def test_runs_show_and_keep_no_secret(planted, ray_folder, tiny_tree, tmp_path):
    """One that trains to its end, one whose loss is not finite, and what is done with the model."""
    recipe = _recipe(tiny_tree, tmp_path)
    said = _agmm("train", str(recipe), "--json", code=0)
    result = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    said += _agmm("train", str(recipe), "--set", "optim.lr=1e38", code=1)  # its cause is in MLflow
    said += _agmm("checkpoints", "list", result["checkpoint"].rpartition("/")[0], code=0)
    said += _agmm("evaluate", result["checkpoint"], code=0)
    said += _agmm("export", result["checkpoint"], "--to", "packed", "--out", str(tmp_path / "n.safetensors"), code=0)
    assert _leaks(planted, [tmp_path, ray_folder]) == []
    assert [half for half in _halves(planted) if half in said.encode()] == []
    assert len(list(ray_folder.rglob("*.log"))) > 3
    assert list((tmp_path / "checkpoints").rglob("COMMITTED"))


def test_a_leak_would_be_found(tmp_path, planted):
    """The look itself: a secret in a file of any kind, half of it changed."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file.db").write_bytes(b"\x00" + planted[1].replace("/", "%2F").encode())
    assert _leaks(planted, [tmp_path]) != []
