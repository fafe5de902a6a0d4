"""10,000 random cases: spikes as the reference's, gradients as the reference's in float64.

A neuron whose membrane comes within 1e-5 of its threshold may fire in one and not in the other, since sums are rounded
in another order: it is left out, and what follows of a spike that did differ is not compared. Gradients are to be
within 1e-5 of a tensor's largest magnitude. Those of parameters are sums over a channel or a step that may cancel: to
that, 2e-6 of the sum of magnitudes is added. A running mean may cancel too.
"""

import pytest
import torch

from agmm.kernels import check, compiled, native, reference
from agmm.library import VARIABLE
from tests.agmm.kernels.cases import draw_case

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no compiled passes: {native.why_not()}")
CHUNK = 1_000
SUMMED = {"weight": (0, 1, 3, 4), "bias": (0, 1, 3, 4), "alpha": (1, 2, 3, 4)}


def differences(inputs, modules):
    """What differs from the truth by more than it may, and whether a spike did."""
    n, r, *given = inputs
    inputs = [n, torch.zeros_like(n) if r is None else r, *given]  # its gradient is dL/dx
    truth = check.run(reference.block_end, inputs, modules, torch.float64)
    ours = check.run(compiled.block_end, [n, r, *given], modules, torch.float32)
    near = check.near_threshold(truth["x"], modules[2])
    wrong_spikes = ours["spikes"] != truth["spikes"]
    if wrong_spikes.any():
        return ["spikes"] if wrong_spikes[:, ~near].any() else [], True
    magnitudes = truth["the gradient of r"].abs()
    return [name for name in ours if (ours[name] - truth[name]).abs().max() > allowed(name, truth, magnitudes)], False


def allowed(name, truth, magnitudes_TBCHW):
    of_largest = check.TOLERANCE * truth[name].abs().max().clamp_min(0.1 if name == "running_mean" else 1e-3)
    axes = SUMMED.get(name.split()[-1])
    return of_largest + (2e-6 * magnitudes_TBCHW.sum(dim=axes).max() if axes else 0)


def check_seeds(seeds):
    ties = 0
    for seed in seeds:
        wrong, tie = differences(*draw_case(seed))
        assert not wrong, f"seed {seed}: {wrong}"
        ties += tie
    assert ties <= len(seeds) / 200


@pytest.mark.parametrize("chunk", range(10))
def test_random_cases_are_the_references(chunk):
    check_seeds(range(chunk * CHUNK, (chunk + 1) * CHUNK))


@pytest.mark.parametrize("path", native.available())
def test_every_path_is_the_references(path, monkeypatch):
    monkeypatch.setenv(VARIABLE, path)
    check_seeds(range(CHUNK))
