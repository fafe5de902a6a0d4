import pytest
import timm
import torch

from agmm.binary import BinaryConv2d
from agmm.bop import Bop
from agmm.loop import train_step
from agmm.optim import make_optimizer, set_learning_rate


def _bop(weights, **options):
    weight = torch.nn.Parameter(torch.tensor(weights))
    group = {"params": [weight], "adaptivity": 0.5, "flip_threshold": 0.2, "initial_lr": 1.0} | options
    return weight, Bop([group], lr=1.0, momentum=0.9)


def test_flips_by_hand():
    """g = 0.5: momenta 0.5, 0.1, -0.5, 0.5. Only the first is past 0.2 and of its weight's sign."""
    weight, optimizer = _bop([1.0, 1.0, 1.0, -1.0])
    weight.grad = torch.tensor([1.0, 0.2, -1.0, 1.0])
    optimizer.step()
    assert weight.tolist() == [-1.0, 1.0, 1.0, -1.0]
    # second step: momenta 0.25 + 0.5 * 1 for the last, -0.25 + 0.5 for the third, and so on
    weight.grad = torch.tensor([0.0, 2.0, 3.0, -2.0])
    optimizer.step()
    assert optimizer.state[weight]["momentum_buffer"].tolist() == pytest.approx([0.25, 1.05, 1.25, -0.75])
    assert weight.tolist() == [-1.0, -1.0, -1.0, 1.0]


def test_flipping_ends_with_the_learning_rate():
    weight, optimizer = _bop([1.0])
    set_learning_rate(optimizer, 0.0)
    weight.grad = torch.tensor([100.0])
    optimizer.step()
    assert weight.tolist() == [1.0]


def _network(method):
    torch.manual_seed(0)
    return timm.create_model("agmm_resnet18", num_classes=4, num_steps=2, width=4, stem="cifar", method=method)


@pytest.mark.parametrize("method", ["agmm", "vanilla", "xnor_learned"])
def test_a_network_trains_and_its_binary_weights_stay_signs(method):
    model = _network(method)
    optimizer = make_optimizer(
        "bop", model, lr=0.05, momentum=0.9, weight_decay=1e-4, adaptivity=1e-2, flip_threshold=1e-6
    )
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    assert len({id(p) for p in trained}) == len(trained) == len(list(model.parameters()))
    convs = [m for m in model.modules() if isinstance(m, BinaryConv2d)]
    before = [conv.weight.clone() for conv in convs]
    images, target = torch.randn(8, 3, 12, 12), torch.arange(8) % 4
    losses = [train_step(model, optimizer, images, target)["loss"] for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]
    assert all(set(conv.weight.unique().tolist()) == {-1.0, 1.0} for conv in convs)
    assert any((conv.weight != old).any() for conv, old in zip(convs, before, strict=True))


@pytest.mark.parametrize("method", ["full_precision", "q_snn", "recu", "xnor"])
def test_a_method_without_plain_signs_is_refused(method):
    with pytest.raises(ValueError, match=r"Set model\.method"):
        make_optimizer("bop", _network(method), lr=0.1, momentum=0.9, weight_decay=0.0)


def test_an_unknown_optimiser_is_refused():
    with pytest.raises(ValueError, match="Known: sgd, bop"):
        make_optimizer("adam", _network("agmm"), lr=0.1, momentum=0.9, weight_decay=0.0)
