import math

import pytest
import torch

from agmm.modulation import AGMM, Halve, make_gate


def _case(T=2, B=3, C=4):
    torch.manual_seed(0)
    return torch.randn(T, B, C, 2, 3)


def test_value_by_hand():
    """Eq. 11, 12: mean 2, alpha 0.5 -> sigmoid(1) * x."""
    gate = AGMM(1)
    torch.nn.init.constant_(gate.alpha, 0.5)
    x = torch.tensor([1.0, 3.0]).view(1, 1, 1, 1, 2)
    assert gate(x).flatten().tolist() == pytest.approx([v / (1 + math.exp(-1)) for v in (1.0, 3.0)])


def test_alpha_starts_at_one_per_step():
    assert AGMM(4).alpha.tolist() == [1.0] * 4


@pytest.mark.parametrize("scope", ["sample", "channel"])
def test_gradient_equals_float64_formula(scope):
    """Eq. 13, both terms: dL/dX = g * G + (sum over Omega of G * X) * g * (1 - g) * alpha / |Omega|."""
    x = _case().requires_grad_()
    gate = AGMM(2, scope=scope)
    with torch.no_grad():
        gate.alpha.copy_(torch.tensor([0.7, -1.3]))
    upstream = torch.randn_like(x)
    gate(x).backward(upstream)

    axes = (2, 3, 4) if scope == "sample" else (3, 4)
    X, G, a = x.detach().double(), upstream.double(), gate.alpha.detach().double().view(-1, 1, 1, 1, 1)
    mean = X.mean(axes, keepdim=True)
    g = 1 / (1 + torch.exp(-a * mean))
    through = (G * X).sum(axes, keepdim=True) * g * (1 - g)
    omega = X[0, 0].numel() if scope == "sample" else X[0, 0, 0].numel()
    torch.testing.assert_close(x.grad.double(), g * G + through * a / omega, rtol=1e-5, atol=1e-6)
    d_alpha = (through * mean).flatten(1).sum(1)
    torch.testing.assert_close(gate.alpha.grad.double(), d_alpha, rtol=1e-5, atol=1e-5)


def test_forward_only_gates_the_value_and_leaves_the_gradient():
    x = _case().requires_grad_()
    gate = AGMM(2, "forward_only")
    y = gate(x)
    torch.testing.assert_close(y, AGMM(2)(x))
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x))
    assert gate.alpha.grad.abs().sum() > 0


def test_backward_only_gates_the_gradient_and_leaves_the_value():
    x, twin = _case().requires_grad_(), _case().requires_grad_()
    gate = AGMM(2, "backward_only")
    y = gate(x)
    torch.testing.assert_close(y, x)
    y.square().sum().backward()
    gated = AGMM(2)(twin)
    gated.backward(2 * twin.detach())
    torch.testing.assert_close(x.grad, twin.grad)


def test_controls():
    x = _case()
    assert torch.equal(make_gate("none", "sample", 2)(x), x)
    assert isinstance(make_gate("constant", "sample", 2), Halve)
    assert torch.equal(make_gate("constant", "sample", 2)(x), x / 2)


def test_another_number_of_steps_is_refused():
    with pytest.raises(ValueError, match="built for 4 time steps and got 2"):
        AGMM(4)(_case())


@pytest.mark.parametrize(("kind", "scope"), [("agm", "sample"), ("agmm", "pixel")])
def test_unknown_kind_or_scope_names_the_known_ones(kind, scope):
    with pytest.raises(ValueError, match="Known: "):
        make_gate(kind, scope, 2)
