import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agmm.neuron import LIF, lif_step, triangle_spike


def test_trace_by_hand():
    """Eq. 1, 3, 4 with leak 0.5, threshold 1: charge 0.6; 0.3 + 0.8 = 1.1 fires and resets; then 0.9 alone does not."""
    current = torch.tensor([[0.6], [0.8], [0.9], [0.55]])
    spikes = LIF(leak=0.5, threshold=1.0)(current)
    # last: 0.45 + 0.55 = 1.0, and a membrane at the threshold fires
    assert spikes.flatten().tolist() == [0.0, 1.0, 0.0, 1.0]


def test_next_membrane_is_zero_after_a_spike_and_kept_otherwise():
    """Eq. 4."""
    spike, v = lif_step(torch.tensor([0.0, 0.4]), torch.tensor([2.0, 0.5]), leak=0.5, threshold=1.0, width=1.0)
    assert spike.tolist() == [1.0, 0.0]
    assert v.tolist() == pytest.approx([0.0, 0.7])


@pytest.mark.parametrize(
    ("u", "width", "slope"),
    [
        (1.0, 1.0, 1.0),
        (0.5, 1.0, 0.5),
        (1.75, 1.0, 0.25),
        (2.0, 1.0, 0.0),
        (-3.0, 1.0, 0.0),
        (1.0, 2.0, 0.5),
        (2.0, 2.0, 0.25),
    ],
)
def test_surrogate_is_a_triangle_of_area_one(u, width, slope):
    """Eq. 7: max(0, gamma - |u - V_th|) / gamma^2 at V_th = 1."""
    u = torch.tensor(u, requires_grad=True)
    triangle_spike(u, threshold=1.0, width=width).backward()
    assert u.grad.item() == pytest.approx(slope)


def _reference_gradient(current, leak, threshold, width, detach_reset):
    """Eq. 1-4 differentiated by hand, in float64: d(sum of weighted spikes)/d current for weights 1, 2, 3, ..."""
    T = len(current)
    u, s, v = [0.0] * T, [0.0] * T, 0.0
    for t in range(T):
        u[t] = leak * v + current[t]
        s[t] = float(u[t] >= threshold)
        v = u[t] * (1 - s[t])
    grad, dv = [0.0] * T, 0.0
    for t in reversed(range(T)):
        slope = max(0.0, width - abs(u[t] - threshold)) / width**2
        dv_du = (1 - s[t]) - (0.0 if detach_reset else u[t] * slope)
        du = (t + 1) * slope + dv * dv_du
        grad[t], dv = du, du * leak
    return grad


@given(
    current=st.lists(st.integers(-256, 512).map(lambda n: n / 128), min_size=1, max_size=6),
    leak=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    width=st.sampled_from([0.5, 1.0, 2.0]),
    detach_reset=st.booleans(),
)
def test_gradient_through_time_equals_the_hand_derivation(current, leak, width, detach_reset):
    """Eq. 1-4 and 7, with and without the gradient through the reset."""
    x = torch.tensor(current, dtype=torch.float32).requires_grad_()
    weights = torch.arange(1, len(current) + 1)
    (LIF(leak, 1.0, width, detach_reset)(x) * weights).sum().backward()
    assert x.grad.tolist() == pytest.approx(
        _reference_gradient(current, leak, 1.0, width, detach_reset), rel=1e-5, abs=1e-6
    )


def test_no_state_survives_a_batch():
    neuron, current = LIF(), torch.full((3, 4), 0.6)
    assert torch.equal(neuron(current), neuron(current))
    assert neuron.state_dict() == {}


@pytest.mark.parametrize("bad", [{"leak": 1.1}, {"leak": -0.1}, {"threshold": 0.0}, {"surrogate_width": 0.0}])
def test_parameters_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="must be"):
        LIF(**bad)
