import math

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from agmm.losses import Criterion, FiringPenalty, distillation, mean_step_cross_entropy, temporal_regulariser
from agmm.neuron import IF


def test_temporal_regulariser_by_hand():
    """TET: the mean of (o - 1)^2; logits 0, 1, 3 give (1 + 0 + 4) / 3."""
    assert temporal_regulariser(torch.tensor([[[0.0, 1.0, 3.0]]])).item() == pytest.approx(5 / 3)


def test_distillation_is_zero_for_the_teacher_itself_and_by_hand_otherwise():
    """Two classes, temperature 2: teacher sigmoid(1), student 1/2, KL times 4."""
    teacher = torch.tensor([[2.0, 0.0]])
    assert distillation(teacher.expand(3, 1, 2), teacher, temperature=2.0).item() == pytest.approx(0, abs=1e-6)
    p = 1 / (1 + math.exp(-1))
    kl = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert distillation(torch.zeros(3, 1, 2), teacher, temperature=2.0).item() == pytest.approx(4 * kl, rel=1e-5)


def test_criterion_weighs_its_terms():
    logits, target, images = torch.randn(2, 4, 3), torch.tensor([0, 1, 2, 0]), torch.zeros(4, 1)
    teacher = torch.randn(4, 3)
    whole = Criterion(tet=0.25, teacher=lambda _: teacher, distill=0.4, temperature=3.0, penalty=lambda: torch.ones(()))
    ce, mse = mean_step_cross_entropy(logits, target), temporal_regulariser(logits)
    expected = 0.6 * (0.75 * ce + 0.25 * mse) + 0.4 * distillation(logits, teacher, temperature=3.0) + 1
    torch.testing.assert_close(whole(logits, target, images), expected)
    torch.testing.assert_close(Criterion()(logits, target, images), ce)


def test_firing_penalty_by_hand():
    """Four layers of integrate-and-fire whose rates are 1, 1, 0, 0: the inner two count, 0.25 each."""
    net = nn.Sequential(IF(), IF(), IF(threshold=2.0), IF(threshold=2.0))
    penalty = FiringPenalty(net, weight=5e-3)
    net(torch.ones(1, 3))
    assert penalty.take().item() == pytest.approx(5e-3 * 0.25)


def test_firing_penalty_moves_the_network_towards_half():
    torch.manual_seed(0)
    model = timm.create_model("agmm_resnet18", width=4, stem="cifar", num_classes=3, num_steps=2, method="q_snn")
    penalty, images = FiringPenalty(model, 1.0), torch.randn(4, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        model(images)
        value = penalty.take()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.7 * values[0]


def test_firing_penalty_sees_no_evaluation():
    net = nn.Sequential(IF())
    penalty = FiringPenalty(net, 1.0)
    with torch.no_grad():
        net(torch.ones(2, 3))
    net(torch.zeros(2, 3))
    assert penalty.take().item() == 0.25


def test_smoothing_agrees_with_torch():
    logits, target = torch.randn(1, 5, 7), torch.arange(5)
    expected = F.cross_entropy(logits[0], target, label_smoothing=0.1)
    torch.testing.assert_close(Criterion(label_smoothing=0.1)(logits, target, target), expected)
