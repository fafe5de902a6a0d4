"""A model from elsewhere runs nothing: pickles and code that somebody has planted are refused, and stay unread."""

import ast
import os
import pickle
from pathlib import Path

import mlflow
import numpy as np
import pytest
import yaml

import agmm
import cluster
import pipelines
from pipelines import cli
from pipelines.errors import Refused, UserError
from pipelines.promotion.artifact import data_path
from pipelines.registry import load_model, read_model
from pipelines.tracking.runs import connect

PACKAGES = [Path(package.__file__).parent for package in (agmm, pipelines, cluster)]


class Trap:
    """Unpickled, it makes a folder: the sign that foreign code has run."""

    def __init__(self, sign):
        self.sign = sign

    def __reduce__(self):
        return os.mkdir, (str(self.sign),)


@pytest.fixture
def trap(tmp_path):
    """A pickle, and the folder that is there once it was read."""
    return pickle.dumps(Trap(tmp_path / "sprung")), tmp_path / "sprung"


def test_the_trap_works(trap):
    content, sign = trap
    pickle.loads(content)
    assert sign.is_dir()


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "python_model.pkl", "data.npz", "model.json"])
def test_a_folder_with_a_pickle_is_no_model(trap, tmp_path, name):
    content, sign = trap
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / name).write_bytes(content)
    with pytest.raises(UserError):
        read_model(folder, "the model")
    assert not sign.exists()


def test_an_artifact_that_is_a_pickle_is_not_run(trap, tmp_path, capsys):
    content, sign = trap
    (tmp_path / "net.safetensors").write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        cli.main(["predict", str(tmp_path / "net.safetensors"), "x.png"])
    assert ended.value.code == 2
    assert not sign.exists()
    assert "Traceback" not in capsys.readouterr().err


class Foreign(mlflow.pyfunc.PythonModel):
    """What MLflow pickles."""

    def predict(self, context, model_input, params=None):
        return np.zeros(1)


@pytest.mark.filterwarnings("ignore")  # MLflow's own, about the very pickle that this is about
def test_a_pickled_model_of_mlflow_is_refused(tmp_path, trap):
    """By this program's loader, by MLflow's once this program has connected, and by the gate of promotion."""
    content, sign = trap
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = connect(uri)
    experiment = client.create_experiment("foreign", artifact_location=(tmp_path / "artifacts").as_uri())
    with mlflow.start_run(experiment_id=experiment):
        found = mlflow.pyfunc.log_model(name="model", python_model=Foreign(), pip_requirements=["mlflow"])
    folder = Path(mlflow.artifacts.download_artifacts(found.model_uri, dst_path=str(tmp_path / "copy")))
    for path in folder.rglob("*.pkl"):
        path.write_bytes(content)
    with pytest.raises(UserError, match="not a model of this program"):
        load_model(found.model_uri, uri)
    with pytest.raises(mlflow.MlflowException, match="MLFLOW_ALLOW_PICKLE_DESERIALIZATION"):
        mlflow.pyfunc.load_model(str(folder))
    with pytest.raises(Refused, match="KeyError"):  # it has no folder of a model of this program's
        data_path("models:/foreign/1", folder)
    assert not sign.exists()


def test_code_beside_a_model_is_refused(tmp_path, trap):
    """`code` in MLmodel would go before this program's own modules."""
    flavor = {"loader_module": "pipelines.pyfunc", "data": "data/model", "code": "code"}
    (tmp_path / "MLmodel").write_text(yaml.safe_dump({"flavors": {"python_function": flavor}}))
    with pytest.raises(Refused, match="would have"):
        data_path("models:/foreign/1", tmp_path)


# What unpickles or runs what it reads. `numpy.load` does where `allow_pickle` is given, `torch.load` always could.
RUNNERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
CALLS = {"torch.load", "mlflow.pyfunc.load_model", "mlflow.pytorch.load_model", "eval", "exec", "__import__"}


def _sources():
    return [path for folder in PACKAGES for path in folder.rglob("*.py")]


def test_no_module_reads_pickles_or_runs_what_it_reads():
    assert len(_sources()) > 150
    found = []
    for path in _sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            allowed = isinstance(node, ast.keyword) and node.arg == "allow_pickle"
            pickled = allowed and ast.unparse(node.value) != "False"
            if RUNNERS & {name.split(".")[0] for name in names} or called in CALLS or pickled:
                found.append(f"{path}:{getattr(node, 'lineno', '?')}")
    assert found == []
