import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from agmm.conversion import calibrate, rate_coded
from agmm.metrics.firing import FiringMeter, firing_rates
from agmm.neuron import RateIF, Rectify

RESNET = {"num_classes": 3, "width": 4, "stem": "cifar", "method": "vanilla"}


def test_levels_by_hand():
    """Median of (0, 0, 1, 3, 5) is 1 and of (2, 2, 4, 6, 8) is 4; two images count twice as much as one."""
    network = nn.Sequential(Rectify())
    first, second = torch.tensor([-1.0, -2, 1, 3, 5]), torch.tensor([2.0, 2, 4, 6, 8])
    as_steps = nn.Sequential(nn.Unflatten(0, (1, -1)), network)  # T = 1
    batches = [first.expand(2, 5), second.expand(1, 5)]
    assert calibrate(as_steps, batches, percentile=50) == pytest.approx({"1.0": (2 * 1 + 4) / 3})
    assert calibrate(as_steps, batches, percentile=100) == pytest.approx({"1.0": (2 * 5 + 8) / 3})


def test_calibration_leaves_the_network_as_it_was():
    network = timm.create_model("agmm_resnet18", **RESNET, neuron="relu", num_steps=1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    levels = calibrate(network, [torch.randn(4, 3, 8, 8)])
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert len(levels) == 16
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("percentile", [0.0, -1.0, 100.1, float("nan")])
def test_a_percentile_out_of_range_is_refused(percentile):
    with pytest.raises(ValueError, match="above 0 and at most 100"):
        calibrate(Rectify(), [], percentile)


def test_a_network_of_spikes_and_no_images_are_refused():
    with pytest.raises(ValueError, match=r"neuron\.kind=relu"):
        calibrate(timm.create_model("agmm_resnet18", **RESNET), [])
    with pytest.raises(ValueError, match="no images"):
        calibrate(nn.Sequential(Rectify()), [])


@pytest.mark.parametrize("steps", [1, 2, 7, 32])
def test_mean_output_is_the_clamped_activation_to_half_a_level_in_T(steps):
    """The first membrane of half a level rounds level * count to the nearest; what is above the level is cut."""
    neuron, x = RateIF(), torch.linspace(-3, 4, 1001, dtype=torch.float64)
    neuron.level.fill_(2.0)
    rate = neuron.double()(x.expand(steps, -1)).mean(0)
    assert (rate - x.clamp(0, 2)).abs().max() <= 2 / (2 * steps) + 1e-12
    assert set((rate * steps / 2).round(decimals=9).tolist()) == set(range(steps + 1))


def test_a_spike_counts_as_one_whatever_its_level():
    """From a membrane of 1, an input of 1 a step comes to the level of 2 at the first and the third step."""
    neuron = RateIF()
    neuron.level.fill_(2.0)
    model = nn.Sequential(nn.PReLU(init=1.0), neuron)  # the identity, with a parameter
    meter = FiringMeter(model, 4)
    with meter.measuring():
        assert model(torch.ones(4, 1, 1)).flatten().tolist() == [2.0, 0.0, 2.0, 0.0]
    assert firing_rates(meter.names, meter.counts_LT2) == {"1": [1.0, 0.0, 1.0, 0.0]}


def _trained(arch):
    """A tiny analogue network that tells bright from dark and left from right, and the images that it saw."""
    torch.manual_seed(0)
    images, labels = torch.randn(48, 3, 8, 8) / 2, torch.arange(48) % 3
    images[labels == 1] += 0.7
    images[labels == 2, :, :, :4] -= 0.7
    stem = {} if arch == "agmm_vggsnn" else {"stem": "cifar"}
    build = {"num_classes": 3, "width": 4, "method": "vanilla", "in_chans": 3, **stem}
    analogue = timm.create_model(arch, **build, neuron="relu", num_steps=1)
    optimizer = torch.optim.SGD(analogue.parameters(), lr=0.05, momentum=0.9)
    for _ in range(25):
        optimizer.zero_grad()
        F.cross_entropy(analogue(images)[0], labels).backward()
        optimizer.step()
    return build, analogue.eval(), images


@pytest.mark.parametrize("arch", ["agmm_resnet19", "agmm_vggsnn"])
@torch.no_grad()
def test_logits_approach_the_analogues_with_more_steps(arch):
    with torch.enable_grad():
        build, analogue, images = _trained(arch)
    spiking = timm.create_model(arch, **build, neuron="rate_if", num_steps=1).eval()
    spiking.load_state_dict(rate_coded(analogue.state_dict(), calibrate(analogue, [images], 100)))
    expected, errors = analogue(images)[0], []
    for steps in (4, 16, 64):
        spiking.set_num_steps(steps)
        errors.append(float((spiking(images).mean(0) - expected).norm() / expected.norm()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.1


def test_another_T_where_no_parameter_belongs_to_a_step():
    network, images = timm.create_model("agmm_resnet18", **RESNET, num_steps=4).eval(), torch.randn(2, 3, 8, 8)
    first = network(images)[:2]
    network.set_num_steps(2)
    torch.testing.assert_close(network(images), first)


@pytest.mark.parametrize(
    ("options", "words"), [({"method": "agmm"}, "gate with an alpha"), ({"norm": "tebn"}, "norm with a factor")]
)
def test_another_T_is_refused_with_the_reason(options, words):
    network = timm.create_model("agmm_resnet18", **RESNET | options, num_steps=4)
    network.set_num_steps(4)
    with pytest.raises(ValueError, match=f"trained for 4 time steps and cannot run over 2: it has a {words}"):
        network.set_num_steps(2)
