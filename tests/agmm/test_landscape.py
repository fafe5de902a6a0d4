from contextlib import suppress

import timm
import torch
from torch import nn

from agmm.landscape import moved, random_directions


def _tiny():
    torch.manual_seed(0)
    return timm.create_model("agmm_resnet18", num_classes=4, num_steps=2, width=4, stem="cifar")


def test_directions_have_the_norms_of_filters_and_leave_vectors_alone():
    model = _tiny()
    first, second = random_directions(model, seed=1)
    weights = {name: p.detach() for name, p in model.named_parameters() if p.ndim > 1}
    assert first.keys() == second.keys() == weights.keys()
    assert "head.weight" in first
    for name, weight in weights.items():
        torch.testing.assert_close(first[name].flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1))
        assert not torch.equal(first[name], second[name])
    again, _ = random_directions(model, seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    other, _ = random_directions(model, seed=2)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_weights_come_back_bit_for_bit_also_after_an_error():
    model = _tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    directions = random_directions(model, seed=0)
    with suppress(ValueError), moved(model, directions, (0.1, -0.3)):
        assert not torch.equal(model.head.weight, before["head.weight"])
        assert torch.equal(model.head.bias, before["head.bias"])
        model(torch.zeros(1))  # no image: it raises
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_quadratic_is_a_paraboloid():
    """Loss |w|^2 / 2 at w + a d1 + b d2 is what the scalar products of w, d1 and d2 say."""
    model = nn.Linear(5, 3, bias=False).double()
    w = model.weight.detach().clone()
    directions = random_directions(model, seed=0)
    d1, d2 = (direction["weight"] for direction in directions)
    for a in (-1.0, 0.0, 0.5):
        for b in (-0.25, 0.0, 1.0):
            with moved(model, directions, (a, b)):
                loss = 0.5 * model.weight.square().sum()
            products = (w * w).sum() + a * a * (d1 * d1).sum() + b * b * (d2 * d2).sum()
            mixed = a * (w * d1).sum() + b * (w * d2).sum() + a * b * (d1 * d2).sum()
            torch.testing.assert_close(loss, 0.5 * products + mixed)
