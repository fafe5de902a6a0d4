"""The kernel gate: compiled passes that differ from the reference are switched off, with a warning that names them."""

import warnings

import pytest
import torch

from agmm.kernels import block_end, check, convolution, native, reference
from agmm.library import VARIABLE
from agmm.models.blocks import BatchNorm2d
from agmm.modulation import Halve
from agmm.neuron import LIF

needs_passes = pytest.mark.skipif(not native.available(), reason=f"no compiled passes: {native.why_not()}")


@pytest.fixture(autouse=True)
def _unjudged(monkeypatch):
    monkeypatch.setattr(check, "_verdicts", {})


@needs_passes
@pytest.mark.parametrize("path", native.available())
def test_every_path_of_this_machine_agrees(path, monkeypatch):
    monkeypatch.setenv(VARIABLE, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check.agrees()


def spoiled(monkeypatch, name, spoil):
    function = getattr(native, name)
    monkeypatch.setattr(native, name, lambda *arguments: spoil(function, *arguments))


def _fire_less(forward, layout, neuron, stream, x, fired):
    forward(layout, neuron, stream, x, fired)
    fired.view(-1)[:16] = 0


def _scale(affine, *arguments):
    affine(*arguments)
    dn = arguments[-1]
    dn *= 1.0001


@needs_passes
@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [("forward", _fire_less, "spikes differ"), ("affine", _scale, "the gradient of n differ")],
)
def test_what_differs_is_switched_off_and_named(name, spoil, words, monkeypatch):
    spoiled(monkeypatch, name, spoil)
    with pytest.warns(RuntimeWarning, match=f"{native.path()}.* switched off .*{words}"):
        assert not check.agrees()
    n = torch.randn(2, 2, 3, 4, 4)
    norm, gate, neuron = BatchNorm2d(3), Halve(), LIF()
    ours, truth = (f(n, None, norm, gate, neuron) for f in (block_end, reference.block_end))
    assert all(torch.equal(a, b) for a, b in zip(ours, truth, strict=True))  # and without another warning


def test_without_compiled_passes_the_reference_runs(monkeypatch):
    monkeypatch.setattr(native._kernels, "_found", "there is no compiler")
    assert not check.agrees()
    assert native.available() == ()
    with pytest.raises(RuntimeError, match="there is no compiler"):
        native.moments(native.Layout(1, 1, 1, 1), native.Counts(torch.zeros(1)))


@needs_passes
def test_an_unknown_path_is_refused(monkeypatch):
    monkeypatch.setenv(VARIABLE, "abacus")
    with pytest.raises(ValueError, match=r"Unknown kernels 'abacus'\. This machine has: .*portable"):
        native.path()


@needs_passes
@pytest.mark.parametrize("agrees", [check.agrees, convolution.agrees])
def test_a_validation_may_be_the_first_use(agrees):
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert agrees()
