"""What is computed again in the backward pass is what was there: not a bit of a training depends on `run.memory`."""

import pytest
import torch
from torch import nn

import agmm.models as models
from agmm.kernels import fuse, is_fused, keep_less, native
from agmm.kernels.replay import Lazy, forgetting
from agmm.kernels.trail import _BlockEnd
from agmm.loop import train_step
from agmm.metrics.gradients import GradientMeter
from agmm.models.blocks import BatchNorm2d

# The second stage is longer than a trail, so that it begins anew on the way.
RESNET = {"depths": (2, 6, 1), "width": 8, "stem": "cifar", "num_steps": 4}
LESS = ("balanced", "least")
needs_passes = pytest.mark.skipif(not native.available(), reason=f"no compiled passes: {native.why_not()}")


def make_network(arch="agmm_resnet18", **options):
    torch.manual_seed(0)
    return models.create_model(arch, num_classes=3, **(RESNET | options if arch == "agmm_resnet18" else options))


def train(network, shape=(6, 3, 12, 12), precision="fp32", steps=3):
    """Losses, and all that the network then holds."""
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    target = torch.arange(shape[-4]) % 3
    losses = []
    for step in range(steps):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        losses.append(train_step(network, optimizer, images, target, precision=precision)["loss"])
    return losses, network.state_dict()


def assert_equal(ours, theirs):
    assert ours[0] == theirs[0]
    assert list(ours[1]) == list(theirs[1])
    for name, value in ours[1].items():
        assert torch.equal(value, theirs[1][name]), name


def trained(memory, *, fused=True, shape=(6, 3, 12, 12), precision="fp32", arch="agmm_resnet18", **options):
    network = make_network(arch, **options)
    (fuse if fused else keep_less)(network, memory)
    return train(network, shape, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gate_scope": "channel", "reset": "soft"},
        {"method": "vanilla", "detach_reset": True},
        {"method": "full_precision"},
        {"method": "xnor_learned"},
        {"norm": "tebn"},
    ],
)
def test_not_a_bit_of_a_training_differs(options, precision):
    whole = trained("fast", precision=precision, **options)
    for memory in LESS:
        assert_equal(trained(memory, precision=precision, **options), whole)


@pytest.mark.parametrize(
    ("fused", "arch", "shape"),
    [
        (False, "agmm_resnet18", (6, 3, 12, 12)),
        (False, "agmm_vggsnn", (4, 6, 2, 16, 16)),
        (True, "agmm_vggsnn", (4, 6, 2, 16, 16)),
    ],
)
def test_nor_in_plain_torch_or_without_a_stream(fused, arch, shape):
    options = {"width": 4, "num_steps": 4} if arch == "agmm_vggsnn" else {}
    whole = trained("fast", fused=fused, arch=arch, shape=shape, **options)
    for memory in LESS:
        assert_equal(trained(memory, fused=fused, arch=arch, shape=shape, **options), whole)


@needs_passes
@pytest.mark.parametrize("memory", LESS)
def test_frames_and_several_threads(memory):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        shape = (4, 6, 3, 12, 12)
        assert_equal(trained(memory, shape=shape), trained("fast", shape=shape))
    finally:
        torch.set_num_threads(before)


@needs_passes
@pytest.mark.parametrize("memory", LESS)
def test_a_meter_sees_the_same_and_changes_no_bit(memory):
    found = []
    for kind in ("fast", memory, memory):
        network = make_network()
        fuse(network, kind)
        meter = GradientMeter(network, 4)
        if len(found) < 2:
            with meter.measuring():
                found.append((train(network, steps=1), meter.moments_LT3))
        else:
            found.append((train(network, steps=1), found[0][1]))
    for each in found[1:]:
        assert_equal(each[0], found[0][0])
        assert torch.equal(each[1], found[0][1])


@needs_passes
@pytest.mark.parametrize("memory", LESS)
def test_a_graph_may_be_kept_and_is_else_gone(memory):
    network = make_network()
    fuse(network, memory)
    loss = network(torch.randn(2, 3, 12, 12)).square().mean()
    first = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(network.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        torch.autograd.grad(loss, list(network.parameters()))


@needs_passes
def test_the_trail_is_taken(monkeypatch):
    seen, function = [], _BlockEnd.backward
    monkeypatch.setattr(_BlockEnd, "backward", staticmethod(lambda *given: (seen.append(1), function(*given))[1]))
    network = make_network()
    assert fuse(network, "balanced")
    assert is_fused(network)
    train(network, steps=1)
    assert len(seen) == 9


def test_a_replay_leaves_generators_and_statistics_alone():
    norm = BatchNorm2d(3)
    with forgetting([norm]):
        norm(torch.randn(2, 3, 4, 4))
    assert torch.equal(norm.running_mean, torch.zeros(3))
    assert norm.num_batches_tracked == 0
    network = make_network()
    fuse(network, "least")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    network(torch.zeros(2, 3, 12, 12)).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


@needs_passes
@pytest.mark.parametrize("memory", LESS)
def test_a_watched_stem_or_shortcut_is_called_once(memory):
    network, seen = make_network(), []
    fuse(network, memory)
    for module in (network.stem[0], next(m for m in network.stages.modules() if isinstance(m, nn.AvgPool2d))):
        module.register_forward_hook(lambda *_: seen.append(1))
    network(torch.randn(2, 3, 12, 12)).square().mean().backward()
    assert len(seen) == 2


def test_what_is_lazy_is_computed_when_asked_for():
    calls = []
    lazy = Lazy(lambda: calls.append(1) or torch.ones(2), users=2)
    assert not calls
    lazy()
    lazy.done()
    lazy()
    assert len(calls) == 1
    lazy.done()
    lazy()
    assert len(calls) == 2
