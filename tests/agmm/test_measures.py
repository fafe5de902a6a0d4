"""The measures, as sums doable on paper, and on every registered network. Axes: T time steps, B batch."""

import math

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from agmm.binary import BinaryConv2d, RealConv2d
from agmm.metrics.energy import energy_mj
from agmm.metrics.firing import FiringMeter, firing_rates, total_firing_rate
from agmm.metrics.flips import FlipCounter, latent_weights, log_flip_ratio
from agmm.metrics.gradients import GradientMeter, gradient_statistics, weight_gradient_statistics
from agmm.metrics.operations import OperationMeter, totals
from agmm.modulation import AGMM
from agmm.neuron import LIF, RateIF

NETWORKS = timm.list_models("agmm_*")


def _tiny(arch="agmm_resnet18", **kwargs):
    torch.manual_seed(0)
    return timm.create_model(arch, num_classes=4, num_steps=2, width=4, **kwargs)


def _hooks(model):
    return sum(len(layer._forward_hooks) for layer in model.modules())


def _operations(layer, x, images=1):
    """(MACs, SOPs) per image of one layer on one input."""
    model = nn.Sequential(layer)
    meter = OperationMeter(model)
    with meter.measuring():
        model(x)
    (cost,) = meter.per_image(images)
    return cost.macs, cost.sops


# --- flips and latent weights


def test_a_weight_that_flips_back_counts_twice():
    """Two of four weights: one flips once, one flips and flips back: 3 flips in 2 steps, 3 / 4 / 2."""
    layer = BinaryConv2d(4, 1, 1)
    layer.weight.data.copy_(torch.tensor([1.0, 1.0, -1.0, 1.0]).view(1, 4, 1, 1))
    counter = FlipCounter(nn.Sequential(layer))
    for weights in ([-1.0, -1.0, -1.0, 1.0], [1.0, -1.0, -1.0, 1.0]):
        layer.weight.data.copy_(torch.tensor(weights).view(1, 4, 1, 1))
        counter.update()
    assert counter.ratio() == {"0": 3 / 8, "total": 3 / 8}
    counter.restart()
    counter.update()
    assert counter.ratio()["total"] == 0


def test_a_total_counts_weights_not_layers():
    model = nn.Sequential(BinaryConv2d(1, 1, 1), BinaryConv2d(3, 1, 1))
    counter = FlipCounter(model)
    model[0].weight.data.neg_()
    counter.update()
    assert counter.ratio() == {"0": 1.0, "1": 0.0, "total": 1 / 4}


def test_latent_weights_by_hand():
    layer = BinaryConv2d(4, 1, 1)
    layer.weight.data.copy_(torch.tensor([1.0, -2.0, 0.5, -0.5]).view(1, 4, 1, 1))
    summary = latent_weights(nn.Sequential(layer))
    assert summary == {"mean_abs": {"0": 1.0, "total": 1.0}, "beyond_one": {"0": 0.25, "total": 0.25}}
    layer(torch.ones(1, 4, 1, 1)).sum().backward()
    assert (layer.weight.grad == 0).float().mean() == 0.25  # the gradient is cut where it says so


def test_the_log_form_has_a_floor():
    assert log_flip_ratio(0.0) == -9
    assert log_flip_ratio(1.0) == pytest.approx(math.log(1 + math.exp(-9)))


# --- firing


def test_firing_rates_by_hand():
    """Currents 1 fire at once; 0.75 fires at the second step (0.5 * 0.75 + 0.75 >= 1); 0 never does."""
    model = nn.Sequential(LIF(), nn.Conv2d(1, 1, 1))
    meter = FiringMeter(model, steps=2)
    current_TBCHW = torch.tensor([1.0, 0.75, 0.0, 0.0]).view(1, 2, 1, 1, 2).expand(2, -1, -1, -1, -1)
    with meter.measuring():
        model[0](current_TBCHW)
        model[0](torch.zeros(2, 1, 1, 1, 2))
    assert firing_rates(meter.names, meter.counts_LT2) == {"0": [1 / 6, 2 / 6]}
    assert total_firing_rate(meter.counts_LT2) == 3 / 12


# --- gradients


class _Squares(nn.Module):
    """Half the sum of squares of a 1x1 convolution's output, whose gradient is the output itself."""

    def __init__(self):
        super().__init__()
        self.conv = RealConv2d(1, 1, 1)
        self.conv.weight.data.fill_(2.0)

    def forward(self, x_TBCHW):
        return 0.5 * self.conv(x_TBCHW.flatten(0, 1)).square().sum()


def test_gradients_by_hand():
    """Outputs 2, 4 at step 0 and 0, 2 at step 1: means 3 and 1, variances 1 and 1; dL/dw = sum of x * y = 2 + 8 + 2."""
    model, x = _Squares(), torch.tensor([1.0, 2.0, 0.0, 1.0]).view(2, 2, 1, 1, 1)
    meter = GradientMeter(model, steps=2)
    with meter.measuring():
        model(x).backward()
    expected = {"mean": {"conv": [3.0, 1.0]}, "variance": {"conv": [1.0, 1.0]}}
    assert gradient_statistics(meter.names, meter.moments_LT3) == expected
    assert weight_gradient_statistics(model) == {"mean": {"conv": 12.0}, "variance": {"conv": 0.0}}


# --- operations


def test_operations_of_a_convolution_with_its_border():
    """3x3 on 4x4, padding 1, 2 outputs: a corner is seen by 4 windows, an edge by 6, the middle by 9."""
    conv = BinaryConv2d(1, 2, 3, padding=1)
    corner, edge, middle = (torch.zeros(1, 1, 4, 4) for _ in range(3))
    corner[..., 0, 0] = edge[..., 0, 1] = middle[..., 1, 2] = 1
    assert _operations(conv, corner) == (0, 8)
    assert _operations(conv, edge) == (0, 12)
    assert _operations(conv, torch.cat([corner, middle]), images=2) == (0, (8 + 18) / 2)
    real = (4 * 4 + 8 * 6 + 4 * 9) * 2
    assert _operations(RealConv2d(1, 2, 3, padding=1), torch.linspace(-1, 1, 16).view(1, 1, 4, 4)) == (real, 0)


def test_operations_of_a_strided_convolution():
    """3x3, stride 2, padding 1 on 4x4: windows centre on 0 and 2; rows are seen by 1, 2, 1, 1 of them."""
    conv = BinaryConv2d(1, 1, 3, stride=2, padding=1)
    seen = torch.tensor([1, 2, 1, 1])
    for row in range(4):
        for column in range(4):
            x = torch.zeros(1, 1, 4, 4)
            x[..., row, column] = 1
            assert _operations(conv, x) == (0, int(seen[row] * seen[column]))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"), [(7, 3, 2, 1), (6, 7, 2, 3), (5, 1, 2, 0), (9, 3, 3, 0)]
)
def test_sops_are_the_convolution_with_ones(size, kernel, stride, padding):
    """The slow truth: a convolution of the spikes whose weights are all one counts arrivals at every output."""
    torch.manual_seed(0)
    x = (torch.rand(2, 3, size, size + 1) < 0.4).float()
    arrivals = F.conv2d(x, torch.ones(5, 3, kernel, kernel), stride=stride, padding=padding).sum()
    assert _operations(BinaryConv2d(3, 5, kernel, stride=stride, padding=padding), x) == (0, arrivals.item())


def test_what_needs_a_multiplication():
    """Real weights: MACs unless every input is 0 or 1. Binary weights: accumulations of whatever is not zero."""
    spikes, pooled = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0.25, 0.0, 1.0, 0.0])
    as_image = {"spikes": spikes.view(1, 4, 1, 1), "pooled": pooled.view(1, 4, 1, 1)}
    assert _operations(RealConv2d(4, 2, 1), as_image["spikes"]) == (0, 6)
    assert _operations(RealConv2d(4, 2, 1), as_image["pooled"]) == (8, 0)
    assert _operations(BinaryConv2d(4, 2, 1), as_image["pooled"]) == (0, 4)
    assert _operations(nn.Linear(4, 3), pooled) == (12, 0)
    assert _operations(nn.Linear(4, 3), spikes) == (0, 9)


def test_a_gate_multiplies_every_element_unless_it_passes_values():
    x = torch.randn(2, 3, 4, 5, 5)
    assert _operations(AGMM(2), x, images=3) == (2 * 4 * 5 * 5, 0)
    assert OperationMeter(nn.Sequential(AGMM(2, "backward_only"))).per_image(1) == []


def test_weights_are_read_once_per_layer_and_step():
    model = nn.Sequential(nn.Conv2d(1, 8, 1, bias=False), BinaryConv2d(8, 8, 1))
    meter, steps, images = OperationMeter(model), 4, 3
    with meter.measuring():
        model[1](model[0](torch.rand(images, 1, 2, 2)).repeat(steps, 1, 1, 1))
    assert [cost.weight_bytes for cost in meter.per_image(images)] == [8 * 4, steps * 64 / 8]


@pytest.mark.parametrize(
    ("giga_sops", "giga_macs", "millijoules"), [(0.045, 0.028, 0.064), (0.056, 0.027, 0.066), (0.750, 0.027, 0.330)]
)
def test_the_energies_of_the_papers_table_2(giga_sops, giga_macs, millijoules):
    assert energy_mj(giga_macs * 1e9, giga_sops * 1e9)["paper_table2"] == pytest.approx(millijoules, rel=0.02)


def test_energy_conventions_by_hand():
    """A million of each: 4.6 + 0.9 uJ of operations, and 12.5 or 162.5 uJ to read a million bytes."""
    energy = energy_mj(1e6, 1e6, 1e6)
    assert energy["horowitz_45nm"] == pytest.approx(5.5e-3)
    assert energy["horowitz_45nm_sram"] == pytest.approx(18e-3)
    assert energy["horowitz_45nm_dram"] == pytest.approx(168e-3)


# --- on the networks


@pytest.mark.parametrize("arch", NETWORKS)
def test_every_network_is_measured_and_left_without_hooks(arch):
    model = _tiny(arch, in_chans=3)
    firing, gradients, operations = FiringMeter(model, 2), GradientMeter(model, 2), OperationMeter(model)
    assert _hooks(model) == 0
    with firing.measuring(), gradients.measuring(), operations.measuring():
        F.cross_entropy(model(torch.randn(3, 3, 16, 16)).flatten(0, 1), torch.tensor([0, 1, 2] * 2)).backward()
    assert _hooks(model) == 0
    rates = firing_rates(firing.names, firing.counts_LT2)
    assert len(rates) >= len(gradients.names) >= 7
    assert all(0 <= rate <= 1 for layer in rates.values() for rate in layer)
    assert gradients.moments_LT3[:, :, 0].min() > 0
    assert all(
        math.isfinite(x)
        for row in gradient_statistics(gradients.names, gradients.moments_LT3)["variance"].values()
        for x in row
    )
    costs = {cost.name: cost for cost in operations.per_image(3)}
    assert all(costs[name].macs == 0 for name in gradients.names)
    assert totals(costs.values())["sops"] > 0
    assert totals(costs.values())["macs"] > 0


def test_spikes_of_another_height_are_spikes():
    """A rate-coded network's spikes have the height of their level, which the next layer's scale absorbs."""
    model = _tiny("agmm_resnet18", stem="cifar", method="full_precision", neuron="rate_if").eval()
    for layer in model.modules():
        if isinstance(layer, RateIF):
            layer.level.fill_(0.7)
    meter = OperationMeter(model)
    with meter.measuring(), torch.inference_mode():
        model(torch.randn(5, 3, 16, 16))
    costs = {cost.name: cost for cost in meter.per_image(5)}
    assert costs["stages.0.0.conv"].macs == 0
    assert costs["stages.0.0.conv"].sops > 0
    assert costs["stages.1.0.shortcut.1"].sops == 0


def test_a_static_stem_runs_once_and_the_rest_every_step():
    """3x3 stem of 3 -> 4 channels on 16x16 without its border: 3 * 4 * (3 * 16 - 2)^2; the head 2 * 32 * 4."""
    model = _tiny("agmm_resnet18", stem="cifar").eval()
    meter = OperationMeter(model)
    with meter.measuring(), torch.inference_mode():
        model(torch.randn(5, 3, 16, 16))
    costs = {cost.name: cost for cost in meter.per_image(5)}
    assert costs["stem.0"].macs == 3 * 4 * (3 * 16 - 2) ** 2
    assert costs["stem.0"].weight_bytes == 4 * 3 * 4 * 9
    assert costs["head"].macs == 2 * 32 * 4
    assert costs["stages.1.0.shortcut.1"].macs == 2 * (8 * 8) * 4 * 8
    assert costs["stages.0.0.gate"].macs == 2 * 4 * 16 * 16
