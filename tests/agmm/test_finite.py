"""A step that is refused names the first layer, and changes nothing."""

import copy
import math

import pytest
import torch

from agmm.finite import all_finite
from agmm.loop import NotFinite, train_step
from agmm.losses import Criterion
from agmm.metrics.gradients import GradientMeter
from agmm.models import create_model
from agmm.optim import make_optimizer

LAYER = "stages.1.0.conv"
IMAGES, TARGET = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0)), torch.arange(4)


@pytest.fixture(params=["sgd", "bop"])
def trained(request):
    """A network and its optimiser after two steps."""
    torch.manual_seed(0)
    model = create_model("agmm_resnet18", num_classes=4, num_steps=2, width=4, stem="cifar")
    optimizer = make_optimizer(request.param, model, lr=0.01, momentum=0.9, weight_decay=0.0)
    for _ in range(2):
        train_step(model, optimizer, IMAGES, TARGET)
    return model, optimizer


def _refused(model, optimizer, images=IMAGES, **options):
    """What the refusal says; weights, buffers and the optimiser's state are bit for bit as before."""
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    with pytest.raises(NotFinite) as refusal:
        train_step(model, optimizer, images, TARGET, **options)
    _assert_same(before, (model.state_dict(), optimizer.state_dict()["state"]))
    return str(refusal.value)


def _assert_same(before, after):
    if isinstance(before, torch.Tensor):
        torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)
    elif isinstance(before, dict):
        assert before.keys() == after.keys()
        for key in before:
            _assert_same(before[key], after[key])
    elif isinstance(before, tuple):
        for one, other in zip(before, after, strict=True):
            _assert_same(one, other)
    else:
        assert before == after


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_weight_is_named(trained, bad):
    model, optimizer = trained
    with torch.no_grad():
        model.get_submodule(LAYER).weight[0, 0, 0, 0] = bad
    assert f"parameter {LAYER}.weight is not finite" in _refused(model, optimizer)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_images_are_named(trained, bad):
    images = IMAGES.clone()
    images[2, 1, 0, 0] = bad
    assert _refused(*trained, images) == "the loss is nan: the input images are not finite"


def test_the_first_layer_whose_output_is_not_finite_is_named(trained):
    """Weights are finite, but their sum over a window is not."""
    model, optimizer = trained
    with torch.no_grad():
        model.stem[0].weight.fill_(3e38)
    assert "first in layer stem.0 (output)" in _refused(model, optimizer)


def test_a_layer_is_named_while_gradients_are_measured(trained):
    """The meter's hooks see the second forward pass too, which has no gradients."""
    model, optimizer = trained
    with torch.no_grad():
        model.stem[0].weight.fill_(3e38)
    with GradientMeter(model, 2).measuring():
        assert "first in layer stem.0 (output)" in _refused(model, optimizer)


def test_a_huge_rate_is_refused_a_step_later(trained):
    model, optimizer = trained
    for group in optimizer.param_groups:
        group["lr"] = 1e30
    train_step(model, optimizer, IMAGES, TARGET)
    words = _refused(model, optimizer)
    assert "first in layer " in words or "parameter " in words


def test_a_loss_that_alone_is_not_finite_says_so(trained):
    words = _refused(*trained, criterion=Criterion(penalty=lambda: torch.tensor(math.inf)))
    assert words.startswith("the loss is inf: in the loss itself")


def test_a_finite_loss_with_bad_gradients_is_refused(trained):
    """The gradient breaks at a layer; behind it, on the way back, it stays so."""
    model, optimizer = trained
    names = [name for name, _ in model.named_parameters()]

    def spoil(_layer, _inputs, output):
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * math.nan)

    model.get_submodule(LAYER).register_forward_hook(spoil)
    words = _refused(model, optimizer)
    assert words.startswith(f"the gradients are not finite: first in {LAYER}.weight on the way back, in ")
    assert words.endswith(f" of {len(names)} parameters")


def test_parameters_without_a_gradient_do_not_matter(trained):
    model, optimizer = trained
    model.unused = torch.nn.Parameter(torch.ones(2))
    assert math.isfinite(train_step(model, optimizer, IMAGES, TARGET)["loss"])


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, on tracing
def test_a_compiled_network_names_its_layer_too(trained):
    """The batch is run again without compilation, which would not see the hooks, or take its time to."""
    model, optimizer = trained
    graphs = []
    model.compile(backend=lambda graph, _: graphs.append(graph) or graph.forward)
    train_step(model, optimizer, IMAGES, TARGET)
    compiled = len(graphs)
    with torch.no_grad():
        model.stem[0].weight.fill_(3e38)
    assert "first in layer stem.0 (output)" in _refused(model, optimizer)
    assert len(graphs) == compiled > 0


def test_phases_are_told_in_order(trained):
    phases = []
    train_step(*trained, IMAGES, TARGET, on_phase=phases.append)
    assert phases == ["forward", "backward", "update"]


@pytest.mark.parametrize(
    ("values", "finite"),
    [([], True), ([1.0, -2.0], True), ([3e38, 3e38], True), ([math.nan, 0.0], False), ([-math.inf, 1.0], False)],
)
def test_finite_by_hand(values, finite):
    """Numbers whose squares overflow are finite."""
    assert all_finite([torch.tensor([value]) for value in values]) is finite
