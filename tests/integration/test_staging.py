"""A data set that lies in S3 alone, through the commands of a user: built, checked, trained on, evaluated."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.environment import environment
from tests.conftest import make_image_folder

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow, pytest.mark.timeout(300)]

ANY_PORT = [word for name in ("s3", "mlflow", "dashboard", "ray") for word in (f"--{name}-port", "0")]
URI = "s3://agmm/data/tiny"


def _agmm(*words, code=0, **environment):
    command = [sys.executable, "-m", "pipelines.cli", *words]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    assert ended.returncode == code, f"{words}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
    return ended


@pytest.fixture
def services(own_home):
    _agmm("up", *ANY_PORT)
    try:
        yield
    finally:
        _agmm("down")


@pytest.fixture
def recipe(tiny_tree, tmp_path):
    tree = {**tiny_tree, "data": {**tiny_tree["data"], "uri": URI}, "optim": {"lr": 0.1, "epochs": 1}}
    tree |= {"run": {"workers": 2}, "checkpoint": {}, "tracking": {"register_as": "tiny"}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    return str(tmp_path / "tiny.yaml")


def test_build_verify_train_evaluate(services, recipe, tmp_path):
    images = make_image_folder(tmp_path / "images")
    none = _agmm("train", recipe, code=2)
    assert f"{URI} has no manifest.json" in none.stderr

    _agmm("data", "build", str(images), "--name", "tiny", "--out", URI)
    assert "--overwrite" in _agmm("data", "build", str(images), "--out", URI, code=2).stderr
    assert not list(Path(os.environ["AGMM_HOME"]).glob("build-*"))
    assert _agmm("data", "verify", URI).stdout == "tiny: whole\n"

    trained = _agmm("train", recipe, "--json")
    assert f"staging {URI}" in trained.stderr
    result = json.loads(trained.stdout)
    again = _agmm("evaluate", "models:/tiny/1", "--json")
    assert "staging" not in again.stderr
    assert json.loads(again.stdout)["top1"] == result["top1"]
    folder = Path(json.loads(again.stdout)["data"])
    assert folder.parent == Path(os.environ["AGMM_CACHE"])

    (folder / "val.beton").write_bytes(b"damaged")
    mended = _agmm("evaluate", "models:/tiny/1", "--data", URI, "--json")
    assert "val.beton is damaged" in mended.stderr
    assert json.loads(mended.stdout)["top1"] == result["top1"]
    shutil.rmtree(folder)

    missing = _agmm("data", "stage", "s3://no-such-bucket/x", code=1)
    assert "no-such-bucket" in missing.stderr
    here = environment(Path(os.environ["AGMM_HOME"]))["AWS_ENDPOINT_URL_S3"]
    foreign = {"AWS_ENDPOINT_URL_S3": here, "AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "planted-secret"}
    wrong = _agmm("data", "stage", URI, code=1, **foreign)
    assert "credentials" in wrong.stderr
    assert "planted-secret" not in wrong.stderr
