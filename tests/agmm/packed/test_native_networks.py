"""Whole networks in every path of the compiled kernels against the reference."""

import threading

import numpy as np
import pytest

from agmm.packed import native, reference
from agmm.packed.pack import pack
from tests.agmm.packed import networks
from tests.agmm.packed.networks import NETWORKS, about, any_artifact, make_images, make_network

PATHS = native.available()
pytestmark = pytest.mark.skipif(not PATHS, reason=f"no native kernels: {native.why_not()}")
paths = pytest.mark.parametrize("path", PATHS)


def packed(name):
    return pack(make_network(name), about(name))


def engine(artifact, **options):
    return native.NativeNetwork(artifact.description, artifact.tensors, **options)


def assert_as_the_reference(artifact, images, **options):
    logits, counts = engine(artifact, **options).run_counted(images)
    wanted, wanted_counts = reference.run(artifact.description, artifact.tensors, images)
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5)
    assert counts == wanted_counts
    return logits


@paths
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_as_the_reference(name, path):
    artifact, images = packed(name), make_images(name, 3)
    alone = assert_as_the_reference(artifact, images, path=path)
    # 2 threads share the images, 5 the rows of each: the same bits
    for threads in (2, 5):
        np.testing.assert_array_equal(engine(artifact, path=path, threads=threads).run(images), alone)


@paths
@pytest.mark.parametrize("seed", range(30))
def test_whatever_a_description_combines_is_as_the_reference(path, seed):
    artifact, generator = any_artifact(seed), np.random.default_rng(seed)
    taken = artifact.description.input
    shape = ((artifact.description.time_steps,) if taken.frames else ()) + (taken.height, taken.width, taken.channels)
    assert_as_the_reference(artifact, generator.normal(0, 1, (3, *shape)).astype(np.float32), path=path, threads=2)


@paths
@pytest.mark.parametrize("steps", range(1, 9))
def test_any_number_of_steps(monkeypatch, path, steps):
    arch, arguments, shape = NETWORKS["resnet19"]
    monkeypatch.setitem(networks.NETWORKS, "resnet19", (arch, arguments | {"num_steps": steps}, shape))
    assert_as_the_reference(packed("resnet19"), make_images("resnet19", 2), path=path)


def test_vector_paths_give_the_same_bits():
    artifact, images = packed("resnet18"), make_images("resnet18")
    vectors = [path for path in PATHS if path.startswith("avx")]
    found = [engine(artifact, path=path).run(images) for path in vectors]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize("name", ["resnet19", "resnet18", "vggsnn_odd"])
def test_images_of_any_size_in_turn(name):
    artifact = packed(name)
    network = engine(artifact, threads=2)
    generator = np.random.default_rng(0)
    for height, width in [(32, 20), (1, 1), (7, 40), (32, 20)]:
        images = generator.normal(0, 1, (1, height, width, 3)).astype(np.float32)
        wanted, _ = reference.run(artifact.description, artifact.tensors, images)
        np.testing.assert_allclose(network.run(images), wanted, rtol=0, atol=1e-5)


def test_no_images_give_no_logits():
    assert engine(packed("resnet19")).run(np.zeros((0, 12, 12, 3))).shape == (0, 5)


def test_memory_is_bounded_by_the_largest_layer(monkeypatch):
    arguments = {"depths": (2, 2), "width": 64, "num_steps": 4}
    monkeypatch.setitem(networks.NETWORKS, "resnet18", ("agmm_resnet18", arguments, (96, 96, 3)))
    network = engine(packed("resnet18"))
    network.run(make_images("resnet18", 2))
    assert network.memory <= 3 * (4 * 24 * 24 * 64) * 4  # float32 [T, H, W, C] of the first blocks


def test_one_network_serves_two_python_threads():
    artifact, images = packed("vggsnn_odd"), make_images("vggsnn_odd", 2)
    network, found = engine(artifact, threads=2), [[], []]

    def work(which):
        found[which] = [network.run(images[which : which + 1]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = network.run(images)
    for which in (0, 1):
        np.testing.assert_array_equal(np.concatenate(found[which]), np.repeat(wanted[which : which + 1], 5, axis=0))


def test_other_images_are_refused():
    network = engine(packed("resnet19"))
    with pytest.raises(ValueError, match=r"takes \[B, H, W, 3\] .* got \[1, 12, 12, 1\]"):
        network.run(np.zeros((1, 12, 12, 1)))
    with pytest.raises(ValueError, match="not finite"):
        network.run(np.full((1, 12, 12, 3), np.nan))
    frames = engine(packed("vggsnn"))
    with pytest.raises(ValueError, match=r"takes \[B, 3, H, W, 2\] .* got \[1, 2, 48, 48, 2\]"):
        frames.run(np.zeros((1, 2, 48, 48, 2)))


def test_other_tensors_are_refused():
    artifact = packed("resnet19")
    missing = {name: tensor for name, tensor in artifact.tensors.items() if name != "blocks.1.alpha"}
    with pytest.raises(ValueError, match=r"needs blocks.1.alpha of shape \(2,\), got None"):
        native.NativeNetwork(artifact.description, missing)
    infinite = dict(artifact.tensors) | {"head.bias": np.full(5, np.inf, np.float32)}
    with pytest.raises(ValueError, match=r"head\.bias has values that are not finite"):
        native.NativeNetwork(artifact.description, infinite)
