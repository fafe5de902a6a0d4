import itertools

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from agmm.methods import METHODS
from agmm.metrics.cost import count_parameters
from agmm.metrics.flips import signs
from agmm.models.blocks import BatchNorm2d, BlockSpec, SpikingBlock, TemporalBatchNorm2d
from agmm.modulation import KINDS

NETWORKS = timm.list_models("agmm_*")
TINY = {"num_classes": 5, "num_steps": 2, "width": 4, "in_chans": 3}
# published networks: the 3x3 convolutions that are binary
BINARY_LAYERS = {"agmm_resnet18": 16, "agmm_resnet19": 16, "agmm_resnet34": 32, "agmm_vggsnn": 7}
VARIANTS = [
    *itertools.product(NETWORKS, METHODS, KINDS, ["sample"], ["bn"]),
    *itertools.product(NETWORKS, ["agmm"], KINDS, ["channel"], ["tebn"]),
]


def _options(arch):
    """Tiny, and with a stem that leaves small images some pixels."""
    return TINY if arch == "agmm_vggsnn" else TINY | {"stem": "cifar"}


@pytest.mark.parametrize(("arch", "method", "kind", "scope", "norm"), VARIANTS)
def test_every_network_trains_and_round_trips(arch, method, kind, scope, norm):
    torch.manual_seed(0)
    build = _options(arch) | {"method": method, "gate_kind": kind, "gate_scope": scope, "norm": norm}
    model, images = timm.create_model(arch, **build), torch.randn(3, 3, 17, 13)
    logits = model(images)
    assert logits.shape == (2, 3, 5)
    assert torch.isfinite(logits).all()
    F.cross_entropy(logits.flatten(0, 1), torch.tensor([0, 1, 2] * 2)).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())

    model.eval()
    twin = timm.create_model(arch, **build)
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin.eval()(images), model(images), rtol=0, atol=0)
    torch.testing.assert_close(model(images.flip(0)), model(images).flip(1), rtol=1e-4, atol=1e-5)
    expected_bits = 32 if method == "full_precision" else 1
    layers = [m for m in model.modules() if hasattr(m, "weight_bits")]
    assert [layer.weight_bits for layer in layers] == [expected_bits] * BINARY_LAYERS[arch]
    assert len(signs(model)) == BINARY_LAYERS[arch]


def test_published_sizes_to_the_digit():
    """The paper's Tab. 2 and section 4 of the method: decimal MB, one bit a binary weight, four bytes for the rest."""
    resnet19 = {"num_classes": 100, "num_steps": 2}
    vanilla = count_parameters(timm.create_model("agmm_resnet19", **resnet19, method="vanilla"))
    assert vanilla.total == 12_615_396
    assert round(vanilla.full_precision_megabytes, 2) == 50.46
    assert round(vanilla.megabytes, 4) == 2.4647
    assert round(count_parameters(timm.create_model("agmm_resnet19", **resnet19)).megabytes, 4) == 2.4648

    learned = count_parameters(timm.create_model("agmm_resnet19", **resnet19, method="xnor_learned"))
    assert learned == vanilla  # scales are not counted

    resnet18 = count_parameters(timm.create_model("agmm_resnet18", num_classes=1000, method="vanilla"))
    assert (resnet18.binary, resnet18.real) == (10_985_472, 704_040)
    assert round(resnet18.full_precision_megabytes, 2) == 46.76
    assert round(resnet18.megabytes, 2) == 4.19


def test_alpha_is_one_scalar_per_step_and_site():
    model = timm.create_model("agmm_resnet19", num_steps=4, width=4)
    alphas = [p for name, p in model.named_parameters() if name.endswith("alpha")]
    assert [p.shape for p in alphas] == [(4,)] * 16


def _block_reference(block, x_TBCHW):
    """The block's equations in float64 and plain autograd: LIF, a * sign(W), BN over T * B, the gate, double skip."""
    spec_v, spikes = torch.zeros_like(x_TBCHW[0]), []
    for x in x_TBCHW:
        u = 0.5 * spec_v + x
        spike = (u >= 1).double()
        soft = spike + (_triangle(u) - _triangle(u).detach())
        spikes.append(soft)
        spec_v = u * (1 - soft)
    w = block.conv.weight.double()
    hard = torch.where(w >= 0, 1.0, -1.0) * w.abs().mean((1, 2, 3), keepdim=True).detach()
    clipped = w.clamp(-1, 1)
    b = hard.detach() + (clipped - clipped.detach())
    s = torch.stack(spikes)
    y = F.conv2d(s.flatten(0, 1), b, stride=block.conv.stride, padding=1)
    y = (y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
    y = y * block.norm.weight.double().view(-1, 1, 1) + block.norm.bias.double().view(-1, 1, 1)
    y = y.unflatten(0, s.shape[:2])
    mean = y.mean((2, 3, 4), keepdim=True)
    return torch.sigmoid(block.gate.alpha.double().view(-1, 1, 1, 1, 1) * mean) * y + x_TBCHW


def _triangle(u):
    """A function whose derivative is the surrogate of Eq. 7 at V_th = 1, gamma = 1: the integral of the triangle."""
    d = (u - 1).clamp(-1, 1)
    return d + 0.5 - 0.5 * d * d.abs()


def test_block_equals_float64_autograd():
    """Eq. 1-7 and 11-16 composed, against autograd of the same formulas with the surrogates as smooth functions."""
    torch.manual_seed(3)
    spec = BlockSpec(num_steps=2)
    block, x = SpikingBlock(4, 4, 1, spec), (torch.randn(2, 3, 4, 5, 5) + 0.5)
    upstream = torch.randn_like(x)
    x32, x64 = x.clone().requires_grad_(), x.double().requires_grad_()
    block(x32).backward(upstream)
    ours = [x32.grad, *(p.grad.clone() for p in block.parameters())]
    block.zero_grad()
    y64 = _block_reference(block, x64)
    y64.backward(upstream.double())
    torch.testing.assert_close(block(x32).double(), y64, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(ours, [x64.grad, *(p.grad for p in block.parameters())], strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arch", NETWORKS)
def test_timm_contract(arch):
    model, images = timm.create_model(arch, **_options(arch)), torch.randn(2, 3, 32, 32)
    features = model.forward_features(images)
    assert features.ndim == 5
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, 2, model.num_features)
    assert model.num_features == model.head_hidden_size == model.get_classifier().in_features
    model.reset_classifier(7)
    assert model.get_classifier().out_features == model.num_classes == 7
    assert model(images).shape == (2, 2, 7)
    model.reset_classifier(0)
    model.eval()
    torch.testing.assert_close(model(images), model.forward_head(model.forward_features(images), pre_logits=True))
    with pytest.raises(ValueError, match="pooling"):
        model.reset_classifier(7, global_pool="max")


@pytest.mark.parametrize("arch", NETWORKS)
def test_frames_that_stand_still_are_an_image(arch):
    """The stem runs once on an image; on frames [T, B, C, H, W] it runs on each."""
    model, images = timm.create_model(arch, **_options(arch)).eval(), torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(images.expand(2, -1, -1, -1, -1)), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((3, 2, 3, 8, 8), "2 time steps and the frames 3"), ((2, 2, 8, 8), "takes images"), ((3, 8, 8), "takes images")],
)
def test_an_input_that_does_not_fit_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("agmm_resnet18", **_options("agmm_resnet18"))(torch.zeros(shape))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("method", "agm"),
        ("stem", "big"),
        ("gate_kind", "x"),
        ("leak", 2.0),
        ("norm", "ln"),
        ("neuron", "lfi"),
        ("reset", "x"),
    ],
)
def test_wrong_arguments_name_what_is_allowed(field, value):
    with pytest.raises(ValueError, match=r"Known: |must be within"):
        timm.create_model("agmm_resnet18", **{**TINY, field: value})


def test_temporal_norm_is_batch_norm_times_a_factor_per_step():
    norm, plain, x = TemporalBatchNorm2d(3, 2), BatchNorm2d(3), torch.randn(8, 3, 4, 4)
    torch.testing.assert_close(norm(x), plain(x))
    with torch.no_grad():
        norm.factor.copy_(torch.tensor([2.0, -1.0]))
    torch.testing.assert_close(norm(x), torch.cat([2 * plain(x)[:4], -plain(x)[4:]]))
    with pytest.raises(ValueError, match="2 time steps and got a batch of 7"):
        norm(x[:7])


def test_vggsnn_has_no_stem_to_choose():
    with pytest.raises(ValueError, match="no stem"):
        timm.create_model("agmm_vggsnn", stem="cifar")


def test_vggsnn_is_the_published_one():
    """64-128-P-256-256-P-512-512-P-512-512-P-linear on 48 x 48: the head sees 512 channels at 3 x 3 places."""
    model = timm.create_model("agmm_vggsnn", num_classes=10, num_steps=2)
    convs = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert convs == [64, 128, 256, 256, 512, 512, 512, 512]
    assert model.forward_features(torch.zeros(2, 1, 2, 48, 48)).shape == (2, 1, 512, 3, 3)
    assert model.get_classifier().in_features == 512 * 9


def test_bf16_keeps_state_in_float32():
    model = timm.create_model("agmm_resnet18", **_options("agmm_resnet18"))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(2, 3, 16, 16))
    assert logits.dtype == torch.float32
    assert model.forward_features(torch.randn(2, 3, 16, 16)).dtype == torch.float32
