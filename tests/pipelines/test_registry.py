import mlflow
import numpy as np
import pytest
import torch

from pipelines import registry
from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.checkpoints.attempts import claim
from pipelines.checkpoints.checkpoint import Checkpoint, Position
from pipelines.errors import ServiceError, UserError
from pipelines.network import build_network, normalise
from pipelines.storage import open_store
from pipelines.tracking import runs as tracking


@pytest.fixture
def network(tiny_config):
    torch.manual_seed(1)
    return build_network(tiny_config.model).eval()


@pytest.fixture
def client(tiny_config):
    return tracking.connect(tiny_config.tracking.uri)


@pytest.fixture
def registered(tiny_config, network, client):
    run_id = tracking.create_run(client, tiny_config)
    card = registry.ModelCard(name="tiny", model=tiny_config.model, data=tiny_config.data, run_id=run_id)
    return registry.register(client, card, checkpoints.model_tensors(network), "tiny")


def _images(count=3):
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def _logits(network, config, images):
    batch = normalise(torch.from_numpy(images).permute(0, 3, 1, 2), config.data, torch.device("cpu"))
    with torch.inference_mode():
        return network(batch).mean(0).numpy()


def test_a_registered_model_comes_back_by_alias_and_predicts(registered, network, client, tiny_config):
    said = []
    assert registered == "models:/tiny/1"
    assert registry.promote(client, "tiny", "champion", None, said.append) == "models:/tiny@champion"
    assert said == ["tiny@champion is now version 1"]
    model = registry.load_model("models:/tiny@champion", tiny_config.tracking.uri)
    expected = _logits(network, tiny_config, _images())
    np.testing.assert_array_equal(_logits(model.network, tiny_config, _images()), expected)

    pyfunc = mlflow.pyfunc.load_model("models:/tiny@champion")
    np.testing.assert_allclose(pyfunc.predict(_images()), expected, rtol=1e-6)
    with pytest.raises(mlflow.exceptions.MlflowException, match="shape"):
        pyfunc.predict(_images()[:, :8])
    row = registry.versions(client)[0]
    assert (row["name"], row["version"], row["aliases"]) == ("tiny", 1, ["champion"])


def test_nothing_in_the_artifact_is_pickle_or_code(registered, tmp_path):
    folder = mlflow.artifacts.download_artifacts(registered, dst_path=str(tmp_path))
    names = {path.name for path in (tmp_path).rglob("*") if path.is_file()}
    assert {"MLmodel", "model.safetensors", "model.json"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".py", ".pt", ".pth"))], folder


@pytest.mark.parametrize(("name", "version", "words"), [("nobody", None, "Known: tiny"), ("tiny", 9, "no version 9")])
def test_promoting_what_is_not_there_is_refused(registered, client, name, version, words):
    with pytest.raises(UserError, match=words):
        registry.promote(client, name, "champion", version, print)


@pytest.mark.parametrize("change", ["weights", "card", "shape"])
def test_a_changed_file_is_refused(tiny_config, network, tmp_path, change):
    card = registry.ModelCard(name="tiny", model=tiny_config.model, data=tiny_config.data)
    registry.write_model(tmp_path, checkpoints.model_tensors(network), card)
    weights, described = tmp_path / "model.safetensors", tmp_path / "model.json"
    if change == "weights":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif change == "card":
        described.write_text(described.read_text().replace('"format": 1', '"format": 2'))
    else:
        described.write_text(described.read_text().replace('"width": 4', '"width": 8'))
    with pytest.raises(UserError, match=r"SHA-256|format 2|do not fit"):
        registry.load_model(str(tmp_path), "")


def test_a_checkpoint_is_a_model(tiny_config, network, tmp_path):
    store = open_store(str(tmp_path / "run"))
    snapshot = Checkpoint(
        Position(), checkpoints.model_tensors(network), {}, {}, config=tiny_config.model_dump(mode="json")
    )
    name = checkpoints.save(claim(store, "a driver"), snapshot)
    for uri in (store.uri, f"{store.uri}/{name}"):
        model = registry.load_model(uri, "")
        np.testing.assert_array_equal(
            _logits(model.network, tiny_config, _images()), _logits(network, tiny_config, _images())
        )


@pytest.mark.parametrize("uri", ["nowhere", "models:/nobody@champion", "runs:/0123/model"])
def test_an_address_without_a_model_is_refused(uri, tiny_config):
    with pytest.raises((UserError, ServiceError), match=uri.split("/")[-1].split("@")[0]):
        registry.load_model(uri, tiny_config.tracking.uri)


def test_a_tracking_server_that_is_down_is_explained(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ServiceError, match=r"http://127\.0\.0\.1:9.*MLFLOW_TRACKING_URI"):
        tracking.connect("http://127.0.0.1:9")
