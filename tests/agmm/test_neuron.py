import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agmm.neuron import IF, LIF, PLIF, lif_step, make_neuron, triangle_spike


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


def test_integrate_and_fire_by_hand():
    """No leak, soft reset: 0.75 + 0.75 fires and leaves 0.5; + 0.5 fires and leaves 0."""
    current = torch.tensor([0.75, 0.75, 0.5, 0.75])
    assert IF(leak=0.1, reset="soft")(current).tolist() == [0.0, 1.0, 1.0, 0.0]
    # hard reset: the rest is lost, and 0.5 alone does not fire
    assert IF(reset="hard")(current).tolist() == [0.0, 1.0, 0.0, 1.0]


def test_learned_leak_starts_where_it_is_told_and_has_a_gradient():
    """u_2 = leak * 0.5 + 0.75 = 0.875; du/dleak = 0.5 by the surrogate 0.875, dleak/dw = 1/4."""
    neuron = PLIF(leak=0.25)
    assert neuron.leak.item() == pytest.approx(0.25)
    neuron(torch.tensor([0.5, 0.75])).sum().backward()
    assert neuron.leak_logit.grad.item() == pytest.approx(0.5 * 0.875 * 0.25 * 0.75)
    with pytest.raises(ValueError, match="neither included"):
        PLIF(leak=1.0)


def test_rectify_is_a_rectifier():
    assert make_neuron("relu", leak=0.5)(torch.tensor([[-1.0, 2.0]])).tolist() == [[0.0, 2.0]]


def test_no_state_survives_a_batch():
    neuron, current = LIF(), torch.full((3, 4), 0.6)
    assert torch.equal(neuron(current), neuron(current))
    assert neuron.state_dict() == {}


@pytest.mark.parametrize("bad", [{"leak": 1.1}, {"leak": -0.1}, {"threshold": 0.0}, {"surrogate_width": 0.0}])
def test_parameters_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="must be"):
        LIF(**bad)
