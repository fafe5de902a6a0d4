"""FLOPs that can be counted by hand, and those of networks against what a validation counts on real images."""

import pytest
import torch

from agmm.metrics.operations import OperationMeter
from pipelines.config import ModelConfig
from pipelines.loop.utilisation import Utilisation, macs, matmul_peak
from pipelines.loop.window import PHASES, Window
from pipelines.loop.world import World
from pipelines.network import build_network

TINY = ModelConfig(arch="agmm_resnet18", num_classes=3, width=4, stem="cifar", time_steps=2)
FRAMES = ModelConfig(arch="agmm_vggsnn", num_classes=3, width=4, in_chans=2, time_steps=2)
ALONE = World(0, 1, torch.device("cpu"))


@pytest.mark.parametrize(("model", "shape"), [(TINY, (3, 16, 16)), (FRAMES, (2, 2, 48, 48))])
def test_macs_are_those_of_the_network_as_it_runs(model, shape):
    network = build_network(model).eval()
    meter = OperationMeter(network)
    with meter.measuring(), torch.no_grad():
        network(torch.rand(1, *shape).transpose(0, 1) if len(shape) == 4 else torch.rand(1, *shape))
    before = torch.get_rng_state()
    assert macs(model, torch.Size(shape)) == meter.connections > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_training_image_is_three_passes_of_two_flops(monkeypatch):
    monkeypatch.setattr("pipelines.loop.utilisation.macs", lambda _model, shape: shape[-1] * 10)
    speed = Utilisation(TINY, ALONE, "fp32")
    assert speed.flops(torch.empty(5, 3, 8, 8)) == 2 * 3 * 5 * 80
    assert speed.flops(torch.empty(5, 3, 16, 16)) == 2 * 3 * 5 * 160  # images grow


def test_speed_by_hand(monkeypatch):
    monkeypatch.setattr("pipelines.loop.utilisation.matmul_peak", lambda *_: 50.0)
    window = Window()
    for _ in range(4):
        window.add({"loss": 1.0, "correct": 2.0}, 8, flops=100.0)
    window.train({"load": 1.0, "forward": 4.0, "report": 2.0, "gather": 1.0, "commit": 2.0})
    window.between({"gather": 3.0, "validate": 4.0, "commit": 1.0})
    assert Utilisation(TINY, ALONE, "fp32").speed(window) == {"images_per_second": 3.2, "mfu": 400 / 10 / 50}
    spent = {"load": 0.25, "forward": 1.0, "commit": 0.75, "validate": 1.75, "other": 0.75}
    assert window.times() == {f"time/{name}": spent.get(name, 0.0) for name in PHASES}
    assert (window + window).times() == window.times()
    assert (window + window).images == 64
    assert Utilisation(TINY, ALONE, "fp32").speed(Window()) == Window().times() == {}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_peak_is_measured_once_and_draws_nothing(precision):
    before = torch.get_rng_state()
    peak = matmul_peak("cpu", precision, torch.get_num_threads())
    assert peak > 1e6
    assert matmul_peak("cpu", precision, torch.get_num_threads()) == peak
    assert torch.equal(torch.get_rng_state(), before)
