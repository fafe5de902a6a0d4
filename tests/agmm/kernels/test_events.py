"""The gradient of weights as a sum over spikes."""

import pytest
import torch

from agmm.kernels import check, events, native
from agmm.kernels.convolution import spike_convolution
from agmm.library import VARIABLE
from tests.agmm.kernels import plain_passes

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no compiled passes: {native.why_not()}")

# images, input and output channels, height, width, and how many of a hundred neurons fire
CASES = (
    (2, 64, 64, 9, 7, 20),
    (3, 70, 45, 5, 6, 15),
    (40, 3, 33, 2, 2, 40),
    (5, 65, 2, 1, 1, 60),
    (2, 130, 16, 30, 20, 80),
    (1, 5, 7, 3, 700, 30),
    (2, 4, 32, 40, 3, 0),
    (2, 4, 32, 6, 5, 100),
)


def draw(images, ins, outs, height, width, percent):
    generator = torch.Generator().manual_seed(ins)
    x = (torch.rand(images, ins, height, width, generator=generator) < percent / 100).float()
    # of channels that fire more and less than the others
    x[:, ::5] = 1 - x[:, ::5]
    grad = torch.randn(images, outs, height, width, generator=generator).contiguous(memory_format=torch.channels_last)
    return x, events.pack(x), grad


def gradient_by_torch(x, grad):
    shape = (grad.shape[1], x.shape[1], 3, 3)
    return torch.nn.grad.conv2d_weight(x.double(), shape, grad.double(), padding=1)


@pytest.mark.parametrize("path", native.available())
@pytest.mark.parametrize("case", CASES)
def test_it_is_torchs_and_to_the_last_bit_the_plain_one(path, case, monkeypatch):
    monkeypatch.setenv(VARIABLE, path)
    x, bits, grad = draw(*case)
    found = events.weight_gradient(bits, grad, x.shape[1])
    assert check.deviation(found, gradient_by_torch(x, grad)) < 1e-6
    plain = torch.empty_like(found)
    plain_passes.weight_gradient(bits, grad, plain)
    assert torch.equal(found, plain)


@pytest.mark.parametrize("path", native.available())
@pytest.mark.parametrize("threads", [2, 3, 64])
def test_threads_change_no_bit(path, threads, monkeypatch):
    monkeypatch.setenv(VARIABLE, path)
    before = torch.get_num_threads()
    try:
        for case in CASES:
            x, bits, grad = draw(*case)
            torch.set_num_threads(1)
            alone = events.weight_gradient(bits, grad, x.shape[1])
            torch.set_num_threads(threads)
            assert torch.equal(events.weight_gradient(bits, grad, x.shape[1]), alone)
    finally:
        torch.set_num_threads(before)


def test_gradients_in_bfloat16_are_taken_as_they_are():
    _, bits, grad = draw(*CASES[0])
    half = grad.bfloat16()
    assert torch.equal(events.weight_gradient(bits, half, 64), events.weight_gradient(bits, half.float(), 64))


@pytest.mark.parametrize(("percent", "pays"), [(20, True), (50, False), (90, True)])
def test_it_pays_where_few_fire_or_few_do_not(percent, pays, monkeypatch):
    if "avx512" not in native.available():
        pytest.skip("the share is that of AVX-512")
    monkeypatch.setenv(VARIABLE, "avx512")
    x = (torch.rand(4, 70, 8, 8, generator=torch.Generator().manual_seed(0)) < percent / 100).float()
    x[:, 63] = 1  # the sign of a word
    assert events.pays(events.pack(x), 70, torch.bfloat16) is pays
    assert events.pays(events.pack(x), 70, torch.float32)
    monkeypatch.setenv(VARIABLE, "portable")
    assert not events.pays(events.pack(x), 70, torch.float32)


def test_a_spike_is_a_bit():
    for case in CASES:
        x, bits, _ = draw(*case)
        spikes = plain_passes.spikes_of(bits, x.shape[1])
        assert torch.equal(spikes[:, 1:-1, 1:-1].permute(0, 3, 1, 2), x)
        assert spikes.sum() == x.sum()


def test_what_differs_is_switched_off_by_name(monkeypatch):
    monkeypatch.setattr(check, "_verdicts", {})
    monkeypatch.setattr(events, "pays", lambda *_: True)
    right = native.weight_gradient

    def wrong(bits, grad, dweights):
        right(bits, grad, dweights)
        dweights[0, 0, 1, 1] += 0.1

    monkeypatch.setattr(native, "weight_gradient", wrong)
    x, _, grad = draw(2, 64, 16, 6, 6, 30)
    signs = torch.ones(16, 64, 3, 3, requires_grad=True)
    with pytest.warns(RuntimeWarning, match="sums over spikes .* switched off .* gradients of weights differ"):
        spike_convolution(x, signs).backward(grad)
    assert check.deviation(signs.grad, gradient_by_torch(x, grad)) < 1e-5
