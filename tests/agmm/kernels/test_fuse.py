"""Whole networks on the fused operation: the same names, the same numbers, and hooks that see what they look at."""

import copy

import pytest
import torch
from torch import nn

import agmm.models as models
from agmm.binary import BinaryConv2d
from agmm.kernels import check, compiled, convolution, fuse, is_fused, native, unfuse
from agmm.loop import train_step
from agmm.metrics.firing import FiringMeter
from agmm.metrics.gradients import GradientMeter
from agmm.models.blocks import FeedForwardBlock, SpikingBlock
from tests.agmm.kernels import plain_passes

needs_passes = pytest.mark.skipif(not native.available(), reason=f"no compiled passes: {native.why_not()}")


def make_network(**options):
    torch.manual_seed(0)
    options = {"depths": (2, 2), "width": 8, "stem": "cifar", "num_classes": 3, "num_steps": 4} | options
    return models.create_model("agmm_resnet18", **options)


def make_vggsnn(**options):
    torch.manual_seed(0)
    return models.create_model("agmm_vggsnn", **({"width": 8, "num_classes": 3, "num_steps": 4} | options))


def frames():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 4, (4, 6, 2, 16, 16), generator=generator).float()


def images(count=8, side=12, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


EITHER = pytest.mark.parametrize(("make", "given", "blocks"), [(make_network, images, 4), (make_vggsnn, frames, 7)])


def gradients(network):
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


@pytest.fixture
def fused_calls(monkeypatch):
    check.agrees()  # compares once, and that is not what is counted
    seen, function = [], compiled.block_end
    monkeypatch.setattr(compiled, "block_end", lambda *arguments: (seen.append(1), function(*arguments))[1])
    return seen


@pytest.mark.parametrize("make", [make_network, make_vggsnn])
def test_names_and_parameters_stay(make):
    network = make()
    twin = copy.deepcopy(network)
    assert fuse(network)
    assert is_fused(network)
    assert list(network.state_dict()) == list(twin.state_dict())
    assert [name for name, _ in network.named_modules()] == [name for name, _ in twin.named_modules()]
    twin.load_state_dict(network.state_dict())
    unfuse(network)
    assert not is_fused(network)
    assert list(network.state_dict()) == list(twin.state_dict())
    assert not fuse(nn.Linear(2, 2))


@needs_passes
@pytest.mark.parametrize("options", [{}, {"gate_scope": "channel"}, {"gate_kind": "constant"}, {"reset": "soft"}])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_those_of_the_blocks(options, memory_format, fused_calls):
    """In float64: where channels come last torch's own norm sums in float32, and a neuron may fire that should not."""
    network = make_network(**options).to(memory_format=memory_format)
    truth = copy.deepcopy(network).double()
    fuse(network)
    for each in (network, truth):
        batch = images().to(each.head.weight.dtype)
        each(batch.contiguous(memory_format=memory_format)).square().mean().backward()
    assert len(fused_calls) == 4
    assert check.deviation(gradients(network), gradients(truth)) < 1e-5
    for ours, theirs in zip(network.buffers(), truth.buffers(), strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=1e-6)


@needs_passes
@pytest.mark.parametrize(
    "options", [{}, {"gate_scope": "channel", "reset": "soft"}, {"method": "xnor_learned"}, {"neuron": "plif"}]
)
def test_gradients_of_a_feed_forward_network_are_those_of_its_blocks(options, fused_calls):
    network = make_vggsnn(**options).to(memory_format=torch.channels_last)
    truth = copy.deepcopy(network).double()
    fuse(network)
    for each in (network, truth):
        each(frames().to(each.head.weight.dtype)).square().mean().backward()
    assert len(fused_calls) == (0 if "neuron" in options else 7)
    assert check.deviation(gradients(network), gradients(truth)) < 1e-5
    for ours, theirs in zip(network.buffers(), truth.buffers(), strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=1e-6)


def losses_of_fifty_steps(network, precision="fp32"):
    # a greater rate flips so many signs that the last bit of a membrane decides which
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    target = torch.arange(8) % 3
    batches = [images(seed=step % 5) for step in range(50)]
    losses = [train_step(network, optimizer, batch, target, precision=precision)["loss"] for batch in batches]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    return torch.tensor(losses)


@needs_passes
def test_fifty_steps_have_the_losses_of_the_blocks(fused_calls):
    network = make_network()
    fuse(network)
    differences = losses_of_fifty_steps(network) - losses_of_fifty_steps(make_network())
    assert len(fused_calls) == 4 * 50
    assert differences.abs().max() < 1e-5


@needs_passes
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fifty_steps_have_the_very_losses_of_plain_torch_in_the_same_order(precision, monkeypatch):
    """To the last bit, where torch's own convolutions are the same on both sides.

    Nothing else would do in bfloat16: each layer of the backward pass rounds what two implementations differ by up, to
    the root of its product with 2^-8, so that behind some layers they are one percent apart, and signs differ.
    """
    fast, plain = (make_network().to(memory_format=torch.channels_last) for _ in range(2))
    fuse(fast)
    fuse(plain)
    losses = losses_of_fifty_steps(fast, precision)
    plain_passes.install(monkeypatch)
    assert torch.equal(losses, losses_of_fifty_steps(plain, precision))


@needs_passes
def test_a_gradient_in_bfloat16_is_that_of_the_blocks_but_for_roundings():
    network, twin = make_network(), make_network()
    fuse(network)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (each(images()) for each in (network, twin))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-3)
    for each in (ours, theirs):
        each.square().mean().backward()
    difference = gradients(network) - gradients(twin)
    assert 0 < difference.norm() < 0.01 * gradients(twin).norm()


@EITHER
def test_meters_see_what_the_kernels_compute_and_change_no_bit_of_it(make, given, blocks, fused_calls):
    network, unseen, twin = make(), make(), make()
    fuse(network)
    fuse(unseen)
    rates, moments = [], []
    for each in (network, twin):
        firing, gradient = FiringMeter(each, 4), GradientMeter(each, 4)
        with firing.measuring(), gradient.measuring():
            each(given()).square().mean().backward()
        rates.append(firing.counts_LT2)
        moments.append(gradient.moments_LT3)
    unseen(given()).square().mean().backward()
    assert torch.equal(rates[0], rates[1])
    torch.testing.assert_close(moments[0], moments[1], rtol=1e-4, atol=1e-9)
    assert torch.equal(gradients(network), gradients(unseen))
    assert len(fused_calls) == (2 * blocks if native.available() else 0)


@needs_passes
def test_who_watches_a_convolution_of_floats_changes_no_bit(monkeypatch):
    monkeypatch.setattr(convolution, "takes", lambda *_: False)
    network, seen = make_network().eval(), []
    fuse(network)
    alone = network(images())
    for block in network.stages.modules():
        if isinstance(block, BinaryConv2d):
            block.register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(network(images()), alone)
    assert len(seen) == 4


@EITHER
def test_a_watched_block_is_called_as_a_block(make, given, blocks):
    network, seen = make(), []
    fuse(network)
    found = [each for each in network.modules() if isinstance(each, SpikingBlock | FeedForwardBlock)]
    assert len(found) == blocks
    found[1].register_forward_hook(lambda *_: seen.append(1))
    network(given())
    assert seen == [1]


@needs_passes
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, as it traces
@EITHER
def test_a_fused_network_compiles_whole(make, given, blocks):
    network = make()
    twin = copy.deepcopy(network)
    fuse(network)
    whole = torch.compile(network, fullgraph=True, backend="aot_eager")
    for each, function in ((network, whole), (twin, twin)):
        assert isinstance(each, nn.Module)
        function(given()).square().mean().backward()
    assert check.deviation(gradients(network), gradients(twin)) < 1e-4
