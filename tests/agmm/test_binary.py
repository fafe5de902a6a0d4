import pytest
import torch
from torch.nn import functional as F

from agmm.binary import BinaryConv2d, channel_scale, sign_ste


def test_sign_of_zero_is_plus_one():
    """Eq. 5; torch.sign would give a ternary weight."""
    w = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 2.0, -2.0])
    assert sign_ste(w).tolist() == [1.0, 1.0, 1.0, -1.0, 1.0, -1.0]


def test_gradient_passes_where_the_weight_is_within_one():
    """Eq. 5: 1[|W| <= 1], both ends included."""
    w = torch.tensor([-1.5, -1.0, 0.0, 1.0, 1.0001], requires_grad=True)
    sign_ste(w).sum().backward()
    assert w.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
    w.grad = None
    sign_ste(w, clip=False).sum().backward()
    assert w.grad.tolist() == [1.0] * 5


def test_scale_is_the_mean_magnitude_of_each_output_channel():
    w = torch.tensor([[[[1.0, -3.0]]], [[[0.5, 0.5]]]])
    assert channel_scale(w).flatten().tolist() == [2.0, 0.5]


def _conv_case(stride):
    torch.manual_seed(stride)
    layer = BinaryConv2d(3, 4, 3, stride=stride, padding=1)
    with torch.no_grad():
        layer.weight.mul_(8)  # some beyond the clip
    return layer, (torch.rand(2, 3, 7, 5) < 0.3).float().requires_grad_()


@pytest.mark.parametrize("stride", [1, 2])
def test_value_and_gradients_equal_float64_autograd(stride):
    """y = conv(x, B) with B = a * sign(W); dL/dW = dL/dB * 1[|W| <= 1], not multiplied by a (Eq. 5)."""
    layer, x = _conv_case(stride)
    upstream = torch.randn(layer(x).shape)
    y = layer(x)
    y.backward(upstream)

    w = layer.weight.detach().double()
    b = (torch.where(w >= 0, 1.0, -1.0) * w.abs().mean((1, 2, 3), keepdim=True)).requires_grad_()
    x64 = x.detach().double().requires_grad_()
    y64 = F.conv2d(x64, b, stride=stride, padding=1)
    y64.backward(upstream.double())
    torch.testing.assert_close(y.double(), y64, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(x.grad.double(), x64.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.weight.grad.double(), b.grad * (w.abs() <= 1), rtol=1e-5, atol=1e-5)
    assert (w.abs() > 1).any()


def test_convolution_of_spikes_is_an_integer_before_the_scale():
    layer, x = _conv_case(1)
    counts = layer(x) / channel_scale(layer.weight).view(-1, 1, 1)
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-4)


def test_an_all_zero_channel_has_finite_gradients():
    layer = BinaryConv2d(1, 1, 3)
    torch.nn.init.zeros_(layer.weight)
    layer(torch.ones(1, 1, 3, 3)).sum().backward()
    assert torch.isfinite(layer.weight.grad).all()


def test_float32_under_autocast():
    layer, x = _conv_case(1)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.float32
