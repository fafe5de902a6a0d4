"""What a user calls: shapes and types that it takes, what it costs, and the picture as evaluation cut it."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from agmm.metrics.operations import OperationMeter, totals
from agmm.packed import Refused, Runtime, load, reference
from agmm.packed import artifact as artifacts
from agmm.packed.description import Input
from agmm.packed.pack import pack
from agmm.packed.picture import fit, open_picture
from agmm.packed.runtime import normalised
from pipelines.data import plan
from pipelines.data.torch_loader import cut
from tests.agmm.packed.networks import about, make_network


def packed_network(name):
    return artifacts.from_bytes(artifacts.to_bytes(pack(make_network(name), about(name))), name)


def make_pixels(description, count=3):
    taken, generator = description.input, np.random.default_rng(0)
    shape = (taken.channels, taken.height, taken.width)
    if taken.frames:
        return generator.poisson(0.3, (count, description.time_steps, *shape)).astype(np.uint8)
    return generator.integers(0, 256, (count, *shape[1:], shape[0]), np.uint8)


def test_images_may_come_in_any_layout_from_numpy_and_torch(tmp_path):
    packed = packed_network("resnet19")
    artifacts.write(packed, tmp_path / "net.safetensors")
    network = load(tmp_path / "net.safetensors")
    images = make_pixels(network.description)
    logits = network(images)
    assert logits.dtype == np.float32
    assert logits.shape == (3, 5)
    np.testing.assert_array_equal(network(images.transpose(0, 3, 1, 2)), logits)
    np.testing.assert_array_equal(network(torch.from_numpy(images)), logits)
    np.testing.assert_array_equal(network(torch.from_numpy(images).permute(0, 3, 1, 2)), logits)
    assert network(images[:0]).shape == (0, 5)


def test_many_images_are_taken_a_part_at_a_time(monkeypatch):
    network = Runtime(packed_network("resnet19"), kernels="reference")
    images = make_pixels(network.description, 7)
    whole = network.measure(images)
    monkeypatch.setattr("agmm.packed.runtime._BYTES_AT_ONCE", 2 * 4 * images[0].size)
    parts = network.measure(images)
    np.testing.assert_allclose(parts.logits, whole.logits, rtol=1e-6)
    assert (parts.spikes, parts.sops, parts.macs) == (whole.spikes, whole.sops, whole.macs)


def test_frames_of_events_are_taken_as_they_are():
    known = packed_network("vggsnn")
    network = Runtime(known, kernels="reference")
    frames = make_pixels(network.description)
    expected, _ = reference.run(known.description, known.tensors, frames.transpose(0, 1, 3, 4, 2).astype(np.float32))
    np.testing.assert_allclose(network(frames), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 12, 12, 3), np.float32),
        np.zeros((12, 12, 3), np.uint8),
        np.zeros((1, 12, 13, 3), np.uint8),
        [[1, 2], [3, 4]],
    ],
)
def test_another_shape_or_type_is_refused(images):
    network = Runtime(packed_network("resnet19"))
    with pytest.raises(ValueError, match=r"uint8 values of shape \[any, 3, 12, 12\] or \[any, 12, 12, 3\]; got"):
        network(images)


def test_kernels_that_are_not_here_are_refused():
    with pytest.raises(ValueError, match=r"Unknown kernels 'abacus'\. Here are: .*reference"):
        Runtime(packed_network("resnet19"), kernels="abacus")


def test_without_native_kernels_a_program_is_warned_unless_it_asked_for_the_reference(monkeypatch):
    monkeypatch.setattr("agmm.packed.native._kernels._found", "they were not compiled")
    with pytest.warns(RuntimeWarning, match="The reference runs, slowly: .* not compiled"):
        assert Runtime(packed_network("resnet19")).kernels == "reference"
    Runtime(packed_network("resnet19"), kernels="reference")


@pytest.mark.parametrize("name", ["resnet19", "resnet18", "odd", "vanilla", "channel_gate", "vggsnn_odd"])
def test_operations_are_those_of_training_but_for_the_head_that_runs_once(name):
    network = make_network(name)
    runtime = Runtime(packed_network(name), kernels="reference")
    images = make_pixels(runtime.description)
    measured = runtime.measure(images)
    meter = OperationMeter(network.double())
    inputs = torch.from_numpy(normalised(images, runtime.description.input)).double().permute(0, 3, 1, 2)
    with torch.inference_mode(), meter.measuring():
        network(inputs)
    layers = meter.per_image(len(images))
    head = next(layer for layer in layers if layer.name == "head")
    once = runtime.description.features * runtime.description.num_classes
    trained = totals(layer for layer in layers if layer is not head)
    assert measured.macs == len(images) * (trained["macs"] + once)
    assert measured.sops == round(len(images) * trained["sops"])


def test_a_picture_is_cut_as_evaluation_cut_it():
    generator = np.random.default_rng(0)
    for height, width, ratio, resolution in [(40, 57, 0.875, 24), (31, 20, 1.0, 20), (20, 20, 1.0, 28), (5, 9, 0.5, 8)]:
        pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
        table = plan.new_table(1)
        plan.fill_evaluation_plan(table, np.array([[height, width]]), ratio)
        norm = (0.5, 0.5, 0.5)
        taken = Input(channels=3, height=resolution, width=resolution, crop_ratio=ratio, mean=norm, std=norm)
        np.testing.assert_array_equal(fit(pixels, taken), cut(pixels, table[0], resolution))


def test_pictures_of_any_mode_are_read_as_rgb(tmp_path):
    Image.fromarray(np.full((4, 5), 7, np.uint8)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(open_picture(tmp_path / "grey.png"), np.full((4, 5, 3), 7))
    Image.fromarray(np.full((4, 5), 7 << 8, np.uint16)).save(tmp_path / "deep.png")  # as a built data set has it
    np.testing.assert_array_equal(open_picture(tmp_path / "deep.png"), np.full((4, 5, 3), 7))


def test_pictures_that_cannot_be_decoded_are_refused(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((4, 5), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match="floating-point"):
        open_picture(tmp_path / "float.tiff")
    Image.new("L", (20, 20)).save(tmp_path / "bomb.png")
    for most in (300, 100):  # where Pillow warns, and where it refuses
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with pytest.raises(ValueError, match="decompression bomb"):
            open_picture(tmp_path / "bomb.png")
    (tmp_path / "short.dds").write_bytes(b"DDS " + bytes(range(124)) + bytes(100))
    with pytest.raises((ValueError, OSError)):
        open_picture(tmp_path / "short.dds")


def test_a_packed_network_runs_without_torch(tmp_path):
    artifacts.write(packed_network("resnet19"), tmp_path / "net.safetensors")
    program = (
        "import sys; sys.modules['torch'] = None; import numpy; from agmm.packed import load; "
        f"print(load({str(tmp_path / 'net.safetensors')!r})(numpy.zeros((1, 12, 12, 3), 'uint8')).shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(1, 5)", done.stderr


def test_a_file_that_is_no_artifact_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"hello, world")
    with pytest.raises(Refused, match="agmm export"):
        load(tmp_path / "x")
