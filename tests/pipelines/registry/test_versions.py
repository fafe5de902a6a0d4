"""What the registry has of a version, and that loading it runs nothing of it."""

import hashlib
import pickle
import shutil
import sys
from pathlib import Path

import mlflow
import pytest
import yaml

from pipelines import registry
from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.config import flatten
from pipelines.errors import ServiceError
from pipelines.registry.versions import file_hashes
from pipelines.tracking import runs as tracking
from tests.pipelines.registry.helpers import METRICS, committed_run, logits


@pytest.fixture
def downloaded(published, tmp_path):
    """The files of `tiny` version 1, to be changed."""
    tracking.connect(published.config.tracking.uri)  # another test's may have been the last
    return shutil.copytree(mlflow.artifacts.download_artifacts(published.uri), tmp_path / "files")


def test_a_version_records_files_data_code_and_accuracy(published, downloaded):
    version = published.client.get_model_version("tiny", "1")
    hashes = {key.removeprefix("agmm.sha256."): value for key, value in version.tags.items() if "sha256" in key}
    assert {"model.safetensors", "model.json", "README.md", "recipe.yaml", "MLmodel"} <= hashes.keys()
    files = [path for path in downloaded.rglob("*") if path.is_file() and path.name != "registered_model_meta"]
    assert sorted(hashes.values()) == sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
    assert file_hashes(downloaded) == hashes
    splits = published.manifest.splits
    assert version.tags["agmm.data.train"] == splits["train"].content_digest
    assert version.tags["agmm.data.val"] == splits["val"].content_digest
    assert version.tags["agmm.code_version"] == "0.1.0+gabc"
    assert float(version.tags["agmm.top1"]) == METRICS["top1"]
    assert (version.run_id, published.uri) == (published.run_id, "models:/tiny/1")


def test_a_file_that_takes_another_s_place_is_seen(downloaded):
    """A changed file cannot hide behind a copy of the right one elsewhere."""
    before = file_hashes(downloaded)
    shutil.copy(downloaded / "MLmodel", downloaded / "data" / "model" / "MLmodel")
    shutil.copy(downloaded / "data" / "model" / "README.md", downloaded / "README.md")
    (downloaded / "MLmodel").write_text("flavors: {}")
    (downloaded / "data" / "model" / "README.md").write_text("changed")
    after = file_hashes(downloaded)
    assert {name for name in before if after[name] != before[name]} == {"MLmodel", "README.md"}
    assert after.keys() - before.keys() == {"data/model/MLmodel", "./README.md"}


def test_a_published_card_has_all_that_was_measured(published):
    model = registry.load_model(published.uri, published.config.tracking.uri)
    assert model.card.metrics == METRICS
    of_this_machine = ("checkpoint.uri", "tracking.uri")  # of which a model says nothing
    card, run = (flatten(each.model_dump()) for each in (model.card.run_config, published.config))
    assert card == run | dict.fromkeys(of_this_machine)
    assert all(run[key] for key in of_this_machine)
    assert model.card.images == {"train": 48, "val": 21}
    assert set(model.card.data_digests) == {"train", "val"}
    assert model.card.classes == ["class0", "class1", "class2"]


def test_what_was_published_is_the_newest_checkpoint(published, images):
    model = registry.load_model(published.uri, published.config.tracking.uri)
    expected = logits(published.network, published.config, images)
    assert (logits(model.network, published.config, images) == expected).all()


def test_a_checkpoint_within_an_epoch_is_not_published(published, network, tmp_path):
    """Its metrics are those of other weights."""
    store = committed_run(published.config, tmp_path / "run", network, METRICS, offset=2)
    with pytest.raises(ServiceError, match="within an epoch"):
        registry.publish(published.client, published.config, published.manifest, published.run_id, store, "tiny")
    assert len(published.client.search_model_versions("name = 'tiny'")) == 1


def test_what_did_not_arrive_whole_is_not_registered(published, card, network, monkeypatch):
    real = mlflow.artifacts.download_artifacts

    def damaged(artifact_uri, dst_path):
        real(artifact_uri=artifact_uri, dst_path=dst_path)
        (weights,) = Path(dst_path).rglob("model.safetensors")
        weights.write_bytes(b"cut")

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", damaged)
    card = card.model_copy(update={"run_id": published.run_id})
    client = tracking.connect(published.config.tracking.uri)
    with pytest.raises(ServiceError, match=r"model\.safetensors is not in MLflow's artifact store as it was sent"):
        registry.register(client, card, checkpoints.model_tensors(network), "damaged")
    assert [model.name for model in client.search_registered_models()] == ["tiny"]


_EVIL = "from pathlib import Path\nPath({mark!r}).touch()\n\ndef _load_pyfunc(path):\n    raise SystemExit\n"


class _Bomb:
    """What unpickling calls."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_nothing_planted_in_the_artifact_runs(downloaded, published, tmp_path, images):
    """A pickle and a folder of code that would be imported in place of ours lie there, and nobody looks at them."""
    assert not [path for path in downloaded.rglob("*") if path.suffix in {".pkl", ".py", ".pt", ".pth"}]
    mark = tmp_path / "ran"
    for folder in (downloaded, downloaded / "data" / "model"):
        (folder / "code" / "pipelines").mkdir(parents=True)
        for name in ("__init__.py", "pyfunc.py"):
            (folder / "code" / "pipelines" / name).write_text(_EVIL.format(mark=str(mark)))
        for name in ("python_model.pkl", "model.pkl", "data.pkl"):
            (folder / name).write_bytes(pickle.dumps(_Bomb(mark)))
    before = list(sys.path)
    served = mlflow.pyfunc.load_model(str(downloaded))
    assert served.predict(images).shape == (7, 3)
    assert registry.load_model(str(downloaded / "data" / "model"), "").card.name == "tiny"
    assert not mark.exists()
    assert sys.path == before


def test_an_mlmodel_that_names_code_is_not_followed_by_this_program(downloaded, tmp_path, published):
    """MLflow itself would import it; `agmm` reads the card and the weights alone, and the file's hash has changed."""
    before, mark = file_hashes(downloaded), tmp_path / "ran"
    (downloaded / "code").mkdir()
    (downloaded / "code" / "evil.py").write_text(_EVIL.format(mark=str(mark)))
    tree = yaml.safe_load((downloaded / "MLmodel").read_text())
    tree["flavors"]["python_function"] |= {"loader_module": "evil", "code": "code"}
    (downloaded / "MLmodel").write_text(yaml.safe_dump(tree))
    registry.load_model(str(downloaded / "data" / "model"), "")
    assert not mark.exists()
    assert file_hashes(downloaded)["MLmodel"] != before["MLmodel"]


def test_versions_are_listed_with_their_aliases(published):
    published.client.set_registered_model_alias("tiny", "listed", "1")
    row = registry.versions(published.client)[0]
    assert (row["name"], row["version"], "listed" in row["aliases"]) == ("tiny", 1, True)


def test_a_tracking_server_that_is_down_is_explained(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ServiceError, match=r"http://127\.0\.0\.1:9.*MLFLOW_TRACKING_URI"):
        tracking.connect("http://127.0.0.1:9")
