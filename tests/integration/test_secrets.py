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


def test_no_secret_is_printed_or_stored(planted, ray_folder, tiny_tree, tmp_path):
    tree = {**tiny_tree, "optim": {"lr": 0.1, "epochs": 1}, "run": {"workers": 1}}
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    said = _agmm("train", str(recipe), "--json", code=0)
    result = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    spare = iter(planted[100:])
    said += _agmm("checkpoints", "list", result["checkpoint"].rpartition("/")[0], code=0)
    said += _agmm("train", str(recipe), "--set", "optim.lr=1e38", code=1)  # not finite: a cause
    said += _agmm("train", str(recipe), "--set", f"checkpoint.uri=s3://me:{next(spare)}@bucket/x", code=2)
    said += _agmm("train", str(recipe), code=2, MLFLOW_TRACKING_URI=f"http://me:{next(spare)}@127.0.0.1:9")
    unreached = {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}
    said += _agmm("data", "stage", "s3://bucket/prefix", code=1, **unreached)
    said += _agmm("data", "stage", "s3://bucket/prefix", code=2, AWS_ENDPOINT_URL_S3=f"http://{next(spare)}:x@h:1")
    said += _agmm("models", "list", code=1, MLFLOW_TRACKING_URI="http://127.0.0.1:9", MLFLOW_TRACKING_TOKEN="x\ny" * 9)
    said += _agmm("submit", "--address", "http://127.0.0.1:9", "--", "true", code=1)
    said += _agmm("evaluate", result["model"], code=2, AGMM_HOME=str(tmp_path / "elsewhere"))
    recipe_uri = tmp_path / "leaky.yaml"
    for field, secret in zip(("uri", "experiment"), spare, strict=False):
        tracking = {**tree["tracking"], field: f"https://me:{secret}@mlflow.example/x"}
        recipe_uri.write_text(yaml.safe_dump({**tree, "tracking": tracking}))
        said += _agmm("train", str(recipe_uri), code=2)
    recipe_uri.unlink()
    assert _leaks(planted, [tmp_path, ray_folder]) == []
    assert [half for half in _halves(planted) if half in said.encode()] == []
    assert len(list(ray_folder.rglob("*.log"))) > 3
    assert list((tmp_path / "checkpoints").rglob("COMMITTED"))


def test_a_leak_would_be_found(tmp_path, planted):
    """The look itself: a secret in a file of any kind, half of it changed."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file.db").write_bytes(b"\x00" + planted[1].replace("/", "%2F").encode())
    assert _leaks(planted, [tmp_path]) != []
