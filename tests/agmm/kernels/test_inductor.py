"""The graph that GPUs run, here compiled for the CPU: the same code, but for the compiler's last stage."""

import copy

import pytest
import torch

from agmm.kernels import block_end, check, inductor, reference
from agmm.models.blocks import BatchNorm2d
from agmm.modulation import make_gate
from agmm.neuron import LIF

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _unjudged(monkeypatch):
    monkeypatch.setattr(check, "_verdicts", {})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # inductor's own
def test_the_graph_agrees_with_the_reference():
    assert check.graph_difference(CPU) == ""
    assert check.graph_agrees(CPU)


def test_a_graph_that_differs_is_switched_off_and_named(monkeypatch):
    def spoiled(*arguments):
        x, spikes = reference.block_end(*arguments)
        return x * 1.001, spikes

    monkeypatch.setattr(inductor, "block_end", spoiled)
    with pytest.warns(RuntimeWarning, match=r"compiled graphs on cpu are switched off .*: x, .* differ"):
        assert not check.graph_agrees(CPU)


def test_a_compiler_that_fails_is_named(monkeypatch):
    def fail(*_):
        raise RuntimeError("no compiler\nbut a long trace")

    monkeypatch.setattr(inductor, "block_end", fail)
    assert check.graph_difference(CPU) == "RuntimeError: no compiler"


def test_a_neuron_without_hooks_is_the_same_neuron():
    neuron = LIF(0.25)
    assert inductor.unhooked(neuron) is neuron
    handle = neuron.register_forward_hook(lambda *_: None)
    alike = inductor.unhooked(neuron)
    assert not alike._forward_hooks
    assert neuron._forward_hooks
    assert alike.leak == 0.25
    handle.remove()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_runs_the_graph():
    device = torch.device("cuda")
    modules = BatchNorm2d(8).to(device), make_gate("agmm", "sample", 4).to(device), LIF()
    n, r = (torch.randn(4, 2, 8, 6, 6, device=device) for _ in range(2))
    truth = reference.block_end(n, r, *copy.deepcopy(modules))
    for value, true in zip(block_end(n, r, *modules), truth, strict=True):
        torch.testing.assert_close(value, true)
    assert check.graph_agrees(device)
