import itertools

import pytest
import timm
import torch
from torch.nn import functional as F

from agmm.methods import METHODS
from agmm.metrics.cost import count_parameters
from agmm.models.blocks import BlockSpec, SpikingBlock
from agmm.modulation import KINDS, SCOPES

NETWORKS = timm.list_models("agmm_*")
TINY = {"num_classes": 5, "num_steps": 2, "width": 4, "stem": "cifar"}
VARIANTS = [
    *itertools.product(NETWORKS, ["agmm"], KINDS, SCOPES),
    *itertools.product(NETWORKS, [name for name in METHODS if name != "agmm"], ["agmm"], ["sample"]),
]


@pytest.mark.parametrize(("arch", "method", "kind", "scope"), VARIANTS)
def test_every_network_trains_and_round_trips(arch, method, kind, scope):
    torch.manual_seed(0)
    build = {**TINY, "method": method, "gate_kind": kind, "gate_scope": scope}
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
    blocks = [m for m in model.modules() if isinstance(m, SpikingBlock)]
    assert len(blocks) == 16
    assert all(block.conv.weight_bits == expected_bits for block in blocks)


def test_published_sizes_to_the_digit():
    """The paper's Tab. 2 and section 4 of the method: decimal MB, one bit a binary weight, four bytes for the rest."""
    resnet19 = {"num_classes": 100, "num_steps": 2}
    vanilla = count_parameters(timm.create_model("agmm_resnet19", **resnet19, method="vanilla"))
    assert vanilla.total == 12_615_396
    assert round(vanilla.full_precision_megabytes, 2) == 50.46
    assert round(vanilla.megabytes, 4) == 2.4647
    assert round(count_parameters(timm.create_model("agmm_resnet19", **resnet19)).megabytes, 4) == 2.4648

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
    spec = BlockSpec(2, "agmm", "agmm", "sample", 0.5, 1.0, 1.0, False)
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


def test_timm_contract():
    model = timm.create_model("agmm_resnet18", **TINY)
    features = model.forward_features(torch.randn(2, 3, 16, 16))
    assert features.shape == (2, 2, 32, 2, 2)
    assert model.forward_head(features, pre_logits=True).shape == (2, 2, model.num_features)
    model.reset_classifier(7)
    assert model.get_classifier().out_features == 7
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 2, 7)


@pytest.mark.parametrize(("field", "value"), [("method", "agm"), ("stem", "big"), ("gate_kind", "x"), ("leak", 2.0)])
def test_wrong_arguments_name_what_is_allowed(field, value):
    with pytest.raises(ValueError, match=r"Known: |must be within"):
        timm.create_model("agmm_resnet18", **{**TINY, field: value})


def test_bf16_keeps_state_in_float32():
    model = timm.create_model("agmm_resnet18", **TINY)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(2, 3, 16, 16))
    assert logits.dtype == torch.float32
    assert model.forward_features(torch.randn(2, 3, 16, 16)).dtype == torch.float32
