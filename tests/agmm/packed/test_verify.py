"""The packed form of every kind of network against the network itself, integer by integer."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from agmm.packed import artifact as artifacts
from agmm.packed import reference
from agmm.packed.pack import pack
from agmm.packed.verify import Differs, verify
from tests.agmm.packed.networks import NETWORKS, about, make_images, make_network


@pytest.mark.parametrize("name", NETWORKS)
def test_a_packed_network_answers_as_the_network(name):
    network = make_network(name)
    packed = artifacts.from_bytes(artifacts.to_bytes(pack(network, about(name))), name)
    images = make_images(name)
    agreement = verify(network, packed, [images[:3], images[3:]])
    assert agreement.inputs == 4
    assert agreement.integers > 0
    assert agreement.largest < 1e-9
    _, counts = reference.run(packed.description, packed.tensors, images)
    assert all(0 < fired < neurons for fired, neurons in zip(counts.spikes, counts.neurons, strict=True))
    with torch.inference_mode():
        axes = (1, 0, 4, 2, 3) if images.ndim == 5 else (0, 3, 1, 2)
        trained = network(torch.from_numpy(images).permute(axes)).mean(0).numpy()
    assert np.abs(trained - agreement.logits).max() < 1e-2


def changed(packed, name, change):
    tensor = packed.tensors[name].copy()
    change(tensor)
    return replace(packed, tensors=dict(packed.tensors) | {name: tensor})


@pytest.mark.parametrize(
    ("tensor", "change", "said"),
    [
        (
            "blocks.1.signs",
            lambda signs: signs.__setitem__((3, 1, 1, 0), signs[3, 1, 1, 0] ^ 1),
            r"at stages\.0\.1\.conv",
        ),
        ("blocks.0.affine", lambda affine: affine.__setitem__((1, 0, 2), 5.0), r"at stages\.0\.1\.conv"),
        ("stem.weight", lambda weight: weight.__imul__(1.1), r"at stages\.0\.0\.conv"),
        ("blocks.2.alpha", lambda alpha: alpha.__iadd__(0.1), r"at stages\.2\.0\.conv"),
        ("head.bias", lambda bias: bias.__iadd__(1e-3), "logits differ .* by 0.001"),
    ],
)
def test_a_difference_is_told_with_the_layer_where_it_begins(tensor, change, said):
    network = make_network("resnet19")
    packed = changed(pack(network, about("resnet19")), tensor, change)
    with pytest.raises(Differs, match=said):
        verify(network, packed, [make_images("resnet19", 8)])


def test_nothing_to_compare_is_no_agreement():
    network = make_network("resnet19")
    with pytest.raises(ValueError, match="no images"):
        verify(network, pack(network, about("resnet19")), [])
