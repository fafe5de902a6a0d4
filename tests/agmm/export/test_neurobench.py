"""NeuroBench's own metrics of small networks, beside ours and beside sums by hand."""

import json

import numpy as np
import pytest
import torch

from agmm.export import neurobench
from agmm.export.neurobench import neurobench_metrics
from agmm.packed import artifact as artifacts
from agmm.packed.pack import pack
from tests.agmm.packed.networks import NETWORKS, about, make_images, make_network

pytest.importorskip("snntorch", reason="NeuroBench is not installed")
pytest.importorskip("neurobench", reason="NeuroBench is not installed")

QUICK = ("vanilla", "resnet18", "rate_if", "vggsnn_odd")


def measured(name, count=5):
    network, images = make_network(name), make_images(name, count)
    packed = pack(network, about(name))
    axes = (1, 0, 4, 2, 3) if images.ndim == 5 else (0, 3, 1, 2)
    with torch.inference_mode():
        labels = network(torch.from_numpy(images).permute(axes)).mean(0).argmax(1).numpy()
    labels[0] = (labels[0] + 1) % 5
    return neurobench_metrics(network, packed, images, labels, batch_size=2), packed


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_neurobench_measures_every_kind_of_network(name):
    found, packed = measured(name)
    assert json.loads(json.dumps(found)) == found
    assert found["accuracy"] == pytest.approx(0.8)
    assert found["footprint_bytes"] == len(artifacts.to_bytes(packed))
    assert found["connection_sparsity"] == 0
    sparsity = found["activation_sparsity"]
    assert 0 < sparsity["agmm"] < 1
    updates = found["membrane_updates"]
    assert 0 < updates["neurobench"] <= updates["agmm"]


def test_spikes_into_binary_layers_count_the_same_on_both_sides():
    found, _ = measured("vanilla", count=4)
    assert found["activation_sparsity"]["neurobench"] == pytest.approx(found["activation_sparsity"]["agmm"])
    theirs, ours = found["synaptic_operations"]["neurobench"], found["synaptic_operations"]["agmm"]
    assert theirs["effective_acs"] == ours["sops"]
    assert theirs["effective_macs"] == ours["macs"]  # no value of this network's real-valued layers is zero


def test_the_float32_footprint_is_the_sum_by_hand():
    """Of `vanilla`: stem 3 -> 8, blocks 8 -> 8, 8 -> 8 and 8 -> 16 with a 1x1 shortcut, head 16 -> 5."""
    found, _ = measured("vanilla")
    weights = 9 * (3 * 8 + 8 * 8 + 8 * 8 + 8 * 16) + 8 * 16 + 16 * 5 + 5
    channels, norms = 8 + 8 + 8 + 16 + 16, 5  # of batch normalisation: four float32 each, and an int64 a norm
    assert found["parameters"] == weights + 2 * channels
    assert found["footprint_bytes_float32"] == 4 * (weights + 4 * channels) + 8 * norms
    assert found["full_precision_layers"] == ["stem.0", "stages.1.0.shortcut.1", "head"]


def test_pooled_spikes_are_accumulations_to_us_and_products_to_neurobench():
    found, _ = measured("vggsnn_odd")
    theirs, ours = found["synaptic_operations"]["neurobench"], found["synaptic_operations"]["agmm"]
    assert theirs["effective_acs"] < ours["sops"]
    assert theirs["effective_macs"] > ours["macs"]


def test_a_metric_that_fails_is_not_a_zero():
    from neurobench.metrics.workload import ClassificationAccuracy

    class Broken(ClassificationAccuracy):
        def __call__(self, model, preds, data):
            raise RuntimeError("no such thing")

    network, images = make_network("vanilla"), make_images("vanilla")
    batches = neurobench._batches(images, np.zeros(4), 2)
    with pytest.raises(ValueError, match="'Broken': no such thing"):
        neurobench._benchmark(neurobench._shown(network), batches, [Broken])


def test_a_label_for_each_image():
    network, images = make_network("vanilla"), make_images("vanilla")
    with pytest.raises(ValueError, match="4 images and labels of shape"):
        neurobench_metrics(network, pack(network, about("vanilla")), images, np.zeros(3, np.int64))
