"""The ONNX file of every kind of network, run by onnxruntime from the file."""

import json

import numpy as np
import pytest
import torch

from agmm.export import onnx as onnx_export
from agmm.export.agreement import Frozen, channels_first, logits
from agmm.export.onnx import write_onnx
from agmm.packed.verify import Differs
from tests.agmm.packed.networks import NETWORKS, about, make_images, make_network

onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
runtime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

model = onnx_export._model
QUICK = ("resnet18", "vggsnn")  # each takes seconds


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_onnxruntime_answers_as_the_network(name, tmp_path):
    network, images = make_network(name), make_images(name)
    path = tmp_path / "new" / "model.onnx"
    written = write_onnx(network, about(name), path, images)
    assert written.size == path.stat().st_size
    assert written.agreement.exported.largest < 1e-5
    assert written.agreement.exported.other_class == 0
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    alone = session.run(["logits"], {"images": channels_first(images[2:3])})[0]
    assert np.abs(alone - logits(network, images[2:3], torch.float64)).max() < 1e-5
    said = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert said["time_steps"] == str(network.num_steps)
    assert json.loads(said["classes"]) == list("abcde")
    assert json.loads(said["preprocessing"])["height"] == images.shape[-3]
    assert b"site-packages" not in path.read_bytes()
    assert list(path.parent.iterdir()) == [path]


def test_a_graph_that_answers_otherwise_is_not_put_in_place(tmp_path, monkeypatch):
    network, images = make_network("odd"), make_images("odd")
    other = make_network("odd", seed=1)
    monkeypatch.setattr(onnx_export, "_model", lambda _fixed, images: model(Frozen(other, torch.float32), images))
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the one before")
    with pytest.raises(Differs, match=r"The ONNX graph .*logits differ by at most"):
        write_onnx(network, about("odd"), path, images)
    assert path.read_bytes() == b"the one before"
    assert list(tmp_path.iterdir()) == [path]


def test_there_must_be_images_to_compare_on(tmp_path):
    for shape in ((0, 8, 8, 3), (1, 3, 8, 8), (1, 2, 8, 8, 3)):
        with pytest.raises(ValueError, match=r"at least one, with H, W, C = \[8, 8, 3\]; got \["):
            write_onnx(make_network("vanilla"), about("vanilla"), tmp_path / "a.onnx", np.zeros(shape))
    assert not list(tmp_path.iterdir())
