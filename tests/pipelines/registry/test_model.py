"""A model's folder: what is in it, what comes back, what is refused."""

import json

import numpy as np
import pytest
import yaml

from pipelines import registry
from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.errors import ServiceError, UserError
from pipelines.recipe import load_recipe
from tests.pipelines.registry.helpers import committed_run, logits


def _written(folder, network, card):
    registry.write_model(folder, checkpoints.model_tensors(network), card)
    return json.loads((folder / "model.json").read_text())


@pytest.mark.parametrize("change", ["weights", "card", "shape", "README.md", "recipe.yaml"])
def test_a_changed_file_is_refused(tiny_config, network, card, tmp_path, change):
    tree = _written(tmp_path, network, card.model_copy(update={"config": tiny_config.model_dump(mode="json")}))
    weights, described = tmp_path / "model.safetensors", tmp_path / "model.json"
    if change == "weights":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif change == "card":
        described.write_text(json.dumps(tree | {"format": 3, "of the future": 1}))
    elif change == "shape":
        described.write_text(described.read_text().replace('"width": 4', '"width": 8'))
    else:
        (tmp_path / change).write_text("another")
    with pytest.raises(UserError, match=rf"{change} does not have the SHA-256|SHA-256|format 3|do not fit"):
        registry.load_model(str(tmp_path), "")


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"format": 2}', '{"format": 2, "name": 3'])
def test_another_file_of_the_name_is_refused(network, card, tmp_path, content):
    _written(tmp_path, network, card)
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(UserError, match="is not a model of this program"):
        registry.load_model(str(tmp_path), "")


def test_a_missing_file_is_refused(network, card, tmp_path):
    _written(tmp_path, network, card)
    (tmp_path / "README.md").unlink()
    with pytest.raises(UserError, match=r"README\.md"):
        registry.load_model(str(tmp_path), "")


def test_a_card_of_the_first_format_is_read(tiny_config, network, card, images, tmp_path):
    tree = _written(tmp_path, network, card)
    later = {"data_digests", "images", "registered_as", "config", "note", "files_sha256"}
    first = {key: value for key, value in tree.items() if key not in later} | {"format": 1, "data_digest": "ab"}
    (tmp_path / "model.json").write_text(json.dumps(first))
    (tmp_path / "README.md").unlink()
    model = registry.load_model(str(tmp_path), "")
    assert (model.card.format, model.card.data_digests) == (2, {"train": "ab"})
    np.testing.assert_array_equal(logits(model.network, tiny_config, images), logits(network, tiny_config, images))


def test_the_recipe_trains_elsewhere(tiny_tree, network, card, tmp_path):
    """It is what the run was, but for its addresses, of which it holds none."""
    tiny_tree["loss"] = {"distill": {"teacher": "resnet18", "weights": str(tmp_path / "teacher.safetensors")}}
    (tmp_path / "made.yaml").write_text(yaml.safe_dump(tiny_tree))
    config = load_recipe(str(tmp_path / "made.yaml"))
    _written(tmp_path, network, card.model_copy(update={"config": config.model_dump(mode="json")}))
    text = (tmp_path / "recipe.yaml").read_text()
    assert str(tmp_path) not in text
    assert "teacher.safetensors, in the folder" in text
    again = load_recipe(str(tmp_path / "recipe.yaml")).model_dump(mode="json")
    for section in ("data", "checkpoint", "tracking"):
        assert again[section].pop("uri") is None
    assert again["loss"]["distill"].pop("weights") == "teacher.safetensors"
    here = config.model_dump(mode="json")
    del here["data"]["uri"], here["checkpoint"]["uri"], here["tracking"]["uri"], here["loss"]["distill"]["weights"]
    assert again == here


def test_a_checkpoint_is_a_model(tiny_config, network, images, tmp_path):
    store = committed_run(tiny_config, tmp_path / "run", network, {})
    for uri in (store.uri, f"{store.uri}/{checkpoints.committed(store)[-1]}"):
        model = registry.load_model(uri, "")
        np.testing.assert_array_equal(logits(model.network, tiny_config, images), logits(network, tiny_config, images))
        assert model.card.run_config == tiny_config


@pytest.mark.parametrize("uri", ["nowhere", "models:/nobody@champion", "runs:/0123/model"])
def test_an_address_without_a_model_is_refused(uri, published):
    with pytest.raises((UserError, ServiceError), match=uri.split("/")[-1].split("@")[0]):
        registry.load_model(uri, published.config.tracking.uri)
