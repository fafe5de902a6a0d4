"""Spikes and gradients are those of SpikingJelly's and snnTorch's own neurons. `make test-peers` asks for it.

The peers are installed into a folder of the test's own, without their dependencies, of which torch is here: nothing of
them enters the environment.
"""

import itertools
import os
import subprocess
import sys

import pytest
import torch

from agmm.neuron import IF, LIF, RESETS

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),  # the peers' own
    pytest.mark.skipif(not os.environ.get("AGMM_TEST_PEERS"), reason="installs packages: set AGMM_TEST_PEERS=1"),
]
PACKAGES = ("spikingjelly==2.0.0", "loguru==0.7.3", "snntorch==1.0.0")
STEPS, NEURONS = 32, 4096
LEAKS = (0.25, 0.5, 0.9)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--target", folder, *PACKAGES], check=True, timeout=240)
    return folder


@pytest.fixture
def _peers(installed, monkeypatch):
    monkeypatch.syspath_prepend(installed)


def _current(most):
    """Input current `[T, neurons]` up to `most`, float64; some inhibits."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(STEPS, NEURONS, generator=generator, dtype=torch.float64) * (most + 0.5) - 0.5


@pytest.mark.usefixtures("_peers")
@pytest.mark.parametrize(("leak", "reset", "detach"), [*itertools.product((*LEAKS, 1.0), RESETS, (True, False))])
def test_spikes_and_gradients_are_spikingjellys(leak, reset, detach):
    """Its tau is 1 / (1 - leak), its PiecewiseQuadratic of alpha is our triangle of width 1 / alpha."""
    from spikingjelly.activation_based import neuron, surrogate

    shared = {
        "v_threshold": 1.25,
        "v_reset": 0.0 if reset == "hard" else None,
        "surrogate_function": surrogate.PiecewiseQuadratic(alpha=0.5),
        "detach_reset": detach,
        "step_mode": "m",
    }
    theirs = neuron.IFNode(**shared)
    if leak < 1:
        theirs = neuron.LIFNode(tau=1 / (1 - leak), decay_input=False, **shared)
    ours = (IF if leak == 1 else LIF)(leak, 1.25, surrogate_width=2.0, detach_reset=detach, reset=reset)
    x, twin = _current(2.0).requires_grad_(), _current(2.0).requires_grad_()
    spikes, expected = ours(x), theirs(twin)
    assert 0.1 < spikes.mean() < 0.9
    assert torch.equal(spikes, expected)
    upstream = _current(1.0).flip(0)
    spikes.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("_peers")
def test_a_membrane_at_the_threshold_fires_as_in_spikingjelly():
    """Multiples of 1/8 and a leak of 1/2 are exact in float64, and often meet the threshold."""
    from spikingjelly.activation_based import neuron

    x = (_current(2.0) * 8).round() / 8
    theirs = neuron.LIFNode(tau=2.0, decay_input=False, v_threshold=1.0, step_mode="m")(x)
    assert ((x[0] == 1) & (theirs[0] == 1)).any()
    assert torch.equal(LIF(0.5, 1.0)(x), theirs)


# Leaky resets one step later, with what it has decayed to by then. A hard reset comes to the same: zero decays to zero.
# Of a soft one it takes off the threshold, where we take off leak * threshold: the same without leak. Without the delay
# it is ours too, as long as no membrane comes to twice the threshold, for then it resets a second time.
SNNTORCH = [
    *itertools.product((*LEAKS, 1.0), ["hard"], [True], [2.0]),
    (1.0, "soft", True, 2.0),
    *itertools.product(LEAKS, ["soft"], [False], [1.0]),
]


@pytest.mark.usefixtures("_peers")
@pytest.mark.parametrize(("leak", "reset", "delay", "most"), SNNTORCH)
def test_spikes_are_snntorchs_where_its_reset_means_the_same(leak, reset, delay, most):
    import snntorch

    mechanism = "zero" if reset == "hard" else "subtract"
    theirs, x = snntorch.Leaky(beta=leak, reset_mechanism=mechanism, reset_delay=delay), _current(most)
    theirs.beta = theirs.beta.double()  # which it holds in float32
    mem, spikes = torch.zeros_like(x[0]), []
    for current in x:
        spike, mem = theirs(current, mem)
        spikes.append(spike)
    expected = torch.stack(spikes).double()
    assert 0.05 < expected.mean() < 0.9
    assert torch.equal(LIF(float(theirs.beta), 1.0, reset=reset)(x), expected)
