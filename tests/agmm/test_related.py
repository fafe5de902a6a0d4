import math

import pytest
import timm
import torch
from torch.nn import functional as F

from agmm.related import (
    LearnedScaleConv2d,
    QSNNConv2d,
    ReCUConv2d,
    XnorConv2d,
    set_progress,
    sign_ede,
    standardise,
)


def _conv(cls, weights, **state):
    """A 1x1 convolution of one output channel with the given latent weights."""
    conv = cls(len(weights), 1, 1)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(weights).view(1, -1, 1, 1))
        if isinstance(conv, LearnedScaleConv2d):
            conv.reset_scale()
    if state:
        set_progress(conv, **state)
    return conv


def _acts(conv):
    signs, scale = conv.binarise()
    return signs.flatten().tolist(), scale.item()


def test_standardise_by_hand():
    """Mean 2, deviation 1 of 1, 2, 3."""
    w = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
    assert standardise(w).flatten().tolist() == [-1.0, 0.0, 1.0]
    assert torch.isfinite(standardise(torch.ones(1, 3, 1, 1))).all()


def test_xnor_keeps_the_gradient_of_its_scale():
    """y = mean|w| * sum of sign(w): dy/dw_i = sign(w_i)/n * sum of signs + scale * 1[|w_i| <= 1]."""
    conv = _conv(XnorConv2d, [0.5, -0.25, 1.5])
    conv(torch.ones(1, 3, 1, 1)).sum().backward()
    assert _acts(conv) == ([1.0, -1.0, 1.0], pytest.approx(0.75))
    expected = [1 / 3 + 0.75, -1 / 3 + 0.75, 1 / 3 + 0.0]
    assert conv.weight.grad.flatten().tolist() == pytest.approx(expected)


def test_learned_scale_starts_at_the_mean_and_has_a_gradient():
    conv = _conv(LearnedScaleConv2d, [0.5, -0.25, 1.5])
    assert _acts(conv) == ([1.0, -1.0, 1.0], pytest.approx(0.75))
    conv(torch.ones(1, 3, 1, 1)).sum().backward()
    assert conv.scale.grad.tolist() == [1.0]
    assert conv.weight.grad.flatten().tolist() == pytest.approx([0.75, 0.75, 0.0])


def test_networks_start_with_scales_that_fit_their_weights():
    model = timm.create_model("agmm_resnet18", width=4, stem="cifar", method="xnor_learned")
    conv = next(m for m in model.modules() if isinstance(m, LearnedScaleConv2d))
    torch.testing.assert_close(conv.scale, conv.weight.abs().mean((1, 2, 3)))


def test_q_snn_signs_are_of_the_centred_weight_and_its_scale_a_power_of_two():
    """Weights 1, 2, 6: mean 3, deviation sqrt(7), so mean|w| = 2 / sqrt(7) = 0.756, and 2^round(log2) = 1."""
    assert _acts(_conv(QSNNConv2d, [1.0, 2.0, 6.0])) == ([-1.0, -1.0, 1.0], 1.0)


@pytest.mark.parametrize(("progress", "t"), [(0.0, 0.1), (0.5, 1.0), (1.0, 10.0)])
def test_error_decay_estimator_by_hand(progress, t):
    """k * t * (1 - tanh(t * w)^2), t log-linear from 0.1 to 10, k = max(1 / t, 1)."""
    w = torch.tensor([0.0, 0.3, -2.0], dtype=torch.float64, requires_grad=True)
    sign_ede(w, torch.tensor(10 ** (2 * progress - 1), dtype=torch.float64)).sum().backward()
    k = max(1 / t, 1)
    assert w.grad.tolist() == pytest.approx([k * t * (1 - math.tanh(t * x) ** 2) for x in (0.0, 0.3, -2.0)])


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_q_snn_gradient_is_that_of_a_tanh_which_steepens(progress):
    """k * tanh(t * w) has the estimator's derivative; standardisation is differentiated through, the scale is not."""
    weights, t = [0.1, -0.4, 3.0, -0.2], 10 ** (2 * progress - 1)
    upstream = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, -1, 1, 1)
    conv = _conv(QSNNConv2d, weights, progress=progress)
    conv(upstream).sum().backward()
    raw = torch.tensor(weights, requires_grad=True)
    smooth = max(1 / t, 1) * torch.tanh(t * standardise(raw.view(1, -1, 1, 1)))
    (smooth * conv.binarise()[1] * upstream).sum().backward()
    torch.testing.assert_close(conv.weight.grad.flatten(), raw.grad, rtol=1e-4, atol=1e-6)


def test_recu_clamps_the_tails_and_passes_no_gradient_there():
    """tau = 0.85: Q = -mean|w| * ln(0.3) = 1.204 mean|w|."""
    weights = [0.1, -0.1, 0.2, -0.2, 4.0]
    conv = _conv(ReCUConv2d, weights, progress=0.0)
    w = torch.tensor(weights)
    w = (w - w.mean()) / w.std()
    limit = -w.abs().mean() * math.log(0.3)
    clamped = w.clamp(-limit, limit)
    signs, scale = _acts(conv)
    assert signs == [1.0 if x >= 0 else -1.0 for x in w.tolist()]
    assert scale == pytest.approx(clamped.abs().mean().item())
    assert clamped[-1] == limit < w[-1]

    upstream = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).view(1, -1, 1, 1)
    conv(upstream).sum().backward()
    # the reference: autograd through standardise and clamp alone, the sign's derivative being 1, times the scale
    raw = torch.tensor(weights, requires_grad=True)
    normed = (raw - raw.mean()) / raw.std()
    (normed.clamp(-limit, limit) * upstream.flatten() * scale).sum().backward()
    torch.testing.assert_close(conv.weight.grad.flatten(), raw.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("progress", "tau"), [(0.0, 0.85), (0.5, 0.9029), (1.0, 0.99)])
def test_recu_limit_follows_the_authors_schedule(progress, tau):
    """tau = A * e^progress + B with A = 0.14 / (e - 1): at half of the training 0.85 + 0.14 * 0.6487 / 1.7183."""
    weights = torch.tensor([0.0] * 20 + [1.0, -1.0])  # standardised, two tails far out
    conv = _conv(ReCUConv2d, weights.tolist(), progress=progress)
    w = standardise(weights.view(1, -1, 1, 1))
    limit = -w.abs().mean().item() * math.log(2 - 2 * tau)
    assert limit < w.max()
    assert conv.binarise()[1].item() == pytest.approx(w.clamp(-limit, limit).abs().mean().item(), rel=1e-3)


def test_progress_is_part_of_the_state_and_reaches_every_layer():
    model = timm.create_model("agmm_resnet18", width=4, stem="cifar", method="recu", num_classes=3)
    set_progress(model, 0.25)
    layers = [m for m in model.modules() if isinstance(m, ReCUConv2d)]
    assert [layer.progress.item() for layer in layers] == [0.25] * 16
    assert model.state_dict()["stages.0.0.conv.progress"] == 0.25


@pytest.mark.parametrize("cls", [XnorConv2d, LearnedScaleConv2d, QSNNConv2d, ReCUConv2d])
def test_convolution_is_scale_times_signs(cls):
    torch.manual_seed(0)
    conv, spikes = cls(4, 6, 3, stride=2, padding=1), (torch.rand(2, 4, 7, 7) < 0.3).float()
    signs, scale = conv.binarise()
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(conv(spikes), F.conv2d(spikes, signs * scale, stride=2, padding=1))
