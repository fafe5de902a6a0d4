"""The convolution of spikes as bits against torch's own, forward and backward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from agmm.binary import BinaryConv2d
from agmm.kernels.convolution import count, spike_convolution, takes
from agmm.library import VARIABLE
from agmm.methods import get_method
from agmm.packed import native

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no native kernels: {native.why_not()}")


def draw(seed, images, ins, outs, height, width, memory_format=torch.contiguous_format):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(images, ins, height, width, generator=generator) < 0.3).float()
    signs = torch.where(torch.rand(outs, ins, 3, 3, generator=generator) < 0.5, -1.0, 1.0)
    return [each.to(memory_format=memory_format).requires_grad_() for each in (x, signs)]


def gradients(function, x, signs, grad):
    return torch.autograd.grad(function(x, signs), (x, signs), grad)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 1 << 30),
    st.integers(1, 3),
    st.sampled_from([1, 7, 16, 63, 64, 65, 129]),
    st.sampled_from([1, 15, 16, 33]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 2]),
    st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_sums_are_equal_and_gradients_are_torchs(seed, images, ins, outs, height, width, stride, memory_format):
    x, signs = draw(seed, images, ins, outs, height, width, memory_format)
    ours, wanted = spike_convolution(x, signs, stride), F.conv2d(x, signs, stride=stride, padding=1)
    assert torch.equal(ours, wanted)
    grad = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(seed))
    theirs = gradients(lambda x, signs: F.conv2d(x, signs, stride=stride, padding=1), x, signs, grad)
    for found, truth in zip(
        gradients(lambda x, s: spike_convolution(x, s, stride), x, signs, grad), theirs, strict=True
    ):
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("path", native.available())
@pytest.mark.parametrize("threads", [1, 3])
def test_every_path_and_number_of_threads(monkeypatch, path, threads):
    monkeypatch.setenv(VARIABLE, path)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for ins in (1, 16, 65, 130):
            x, signs = draw(ins, 3, ins, 20, 11, 6)
            assert torch.equal(spike_convolution(x, signs), F.conv2d(x, signs, padding=1))
            truth = gradients(lambda x, s: F.conv2d(x, s, padding=1), x, signs, torch.ones(3, 20, 11, 6))
            torch.testing.assert_close(gradients(spike_convolution, x, signs, torch.ones(3, 20, 11, 6)), truth)
    finally:
        torch.set_num_threads(before)


def test_autograd_keeps_bits_and_signs_alone():
    x, signs = draw(0, 4, 128, 64, 8, 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        spike_convolution(x, signs)
    spikes = [each for each in kept if each.data_ptr() != signs.data_ptr()]
    assert [(each.dtype, tuple(each.shape)) for each in spikes] == [(torch.int64, (4, 10, 10, 2))]


@pytest.mark.parametrize("value", [0.5, 2.0, -1.0, float("nan"), float("inf"), 1.0000001])
def test_what_is_no_spike_is_refused(value):
    x, signs = draw(0, 2, 70, 4, 5, 5)
    with torch.no_grad():
        x[1, 69, 4, 4] = value
    with pytest.raises(ValueError, match="Spikes are 0 or 1"):
        spike_convolution(x, signs)


def test_under_autocast_sums_stay_exact_and_gradients_are_of_bfloat16():
    x, signs = draw(0, 2, 64, 32, 8, 8)
    grad = torch.randn(2, 32, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        ours = spike_convolution(x, signs)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, F.conv2d(x, signs, padding=1))
    dx, dsigns = torch.autograd.grad(ours, (x, signs), grad)
    truth = gradients(lambda x, s: F.conv2d(x, s, padding=1), x, signs, grad)
    assert 0 < (dx - truth[0]).abs().max() < 0.02 * truth[0].abs().max()
    assert 0 < (dsigns - truth[1]).abs().max() < 0.02 * truth[1].abs().max()


@pytest.mark.parametrize("height", [1, 3])
def test_gradients_of_maps_one_pixel_wide_are_numbers_in_bfloat16(height):
    """Where freed memory holds none: oneDNN's own gradient of the weights then has them too."""
    x, signs = draw(0, 8, 16, 32, height, 1)
    with torch.autocast("cpu", torch.bfloat16):
        out = spike_convolution(x, signs, 2)
        rubbish = [torch.full((1 << size,), torch.nan) for size in range(2, 18) for _ in range(6)]
        del rubbish
        dsigns = torch.autograd.grad(out.sum(), signs)[0]
    assert dsigns.isfinite().all()


def test_it_is_compiled_as_one_graph():
    x, signs = draw(0, 2, 64, 32, 8, 8)
    compiled = torch.compile(lambda x, signs: 2 * spike_convolution(x, signs), fullgraph=True, backend="aot_eager")
    grad = torch.ones(2, 32, 8, 8)
    torch.testing.assert_close(
        gradients(compiled, x, signs, grad), gradients(lambda x, s: 2 * spike_convolution(x, s), x, signs, grad)
    )


def test_what_the_kernels_do_not_take_is_told():
    x, signs = draw(0, 1, 64, 4, 4, 4)
    assert takes(x, signs, 1)
    assert not takes(x, signs, 3)
    assert not takes(x.double(), signs.double(), 1)
    assert not takes(x, signs[..., :1], 1)
    assert not takes(x[:0], signs, 1)
    assert not takes(torch.zeros(1, 4000, 1, 1), torch.zeros(1, 4000, 3, 3), 1)


@pytest.mark.parametrize("method", ["agmm", "q_snn", "recu", "xnor", "xnor_learned"])
@pytest.mark.parametrize("clip", [True, False])
def test_a_layer_counts_as_it_convolves(method, clip):
    torch.manual_seed(0)
    layer = get_method(method).conv(20, 17, 3, stride=2, padding=1)
    layer.clip = clip
    with torch.no_grad():
        layer.weight.mul_(2).flatten()[:3] = torch.tensor([0.0, -0.0, 1.0])
    found = []
    for function in (lambda x: count(layer, x).floats(), layer):
        x, _ = draw(1, 3, 20, 17, 9, 7)
        layer.zero_grad()
        out = function(x)
        out.square().sum().backward()
        found.append((out.detach(), x.grad, *(parameter.grad.clone() for parameter in layer.parameters())))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-3)
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][2].abs().max() > 0


def test_of_a_layer_autograd_keeps_no_copy_of_the_weights():
    layer, kept = BinaryConv2d(64, 32, 3, padding=1), []
    x, _ = draw(0, 4, 64, 32, 8, 8)
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        count(layer, x)
    other = [each for each in kept if each.data_ptr() != layer.weight.data_ptr()]
    assert sum(each.nbytes for each in other) < layer.weight.nbytes / 4  # bits, and the scale
