import math

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from agmm.loop import NotFinite, evaluate, means, train_step
from agmm.losses import mean_step_cross_entropy
from agmm.metrics.flips import flip_ratio, pack_signs, signs, unpack_signs
from agmm.optim import learning_rate, make_optimizer, parameter_groups


def _tiny(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("agmm_resnet18", num_classes=4, num_steps=2, width=4, stem="cifar", **kwargs)


class _Fixed(nn.Module):
    """Gives the same logits whatever the images."""

    def __init__(self, logits_TBK):
        super().__init__()
        self.logits = nn.Parameter(logits_TBK)

    def forward(self, images):
        return self.logits[:, : len(images)]


def test_loss_is_the_mean_of_the_steps_cross_entropies():
    logits, target = torch.randn(3, 5, 7), torch.tensor([0, 1, 2, 3, 4])
    by_step = [F.cross_entropy(step, target) for step in logits]
    torch.testing.assert_close(mean_step_cross_entropy(logits, target), torch.stack(by_step).mean())


def test_flip_ratio_by_hand():
    """Eq. 8: one of two signs flipped is 0.5; -0.0 counts as plus."""
    model = nn.Sequential()
    before = {"a": torch.tensor([True, True]), "b": torch.tensor([True] * 6)}
    after = {"a": torch.tensor([True, False]), "b": torch.tensor([True] * 6)}
    assert flip_ratio(before, after) == {"a": 0.5, "b": 0.0, "total": 1 / 8}
    assert signs(model) == {}


def test_signs_survive_packing():
    model = _tiny()
    snapshot = signs(model)
    assert len(snapshot) == 16
    restored = unpack_signs(pack_signs(snapshot), model)
    assert all(torch.equal(restored[name], snapshot[name]) for name in snapshot)


def test_vectors_do_not_decay():
    model = _tiny()
    decayed, spared = parameter_groups(model, 1e-4)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (1e-4, 0.0)
    by_id = {id(p): name for name, p in model.named_parameters()}
    assert all(by_id[id(p)].endswith("weight") for p in decayed["params"])
    names = {by_id[id(p)].rsplit(".")[-1] for p in spared["params"]}
    assert names == {"alpha", "weight", "bias"}
    assert len(decayed["params"]) + len(spared["params"]) == len(by_id)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.05), (1, 0.1), (2, 0.1), (6, 0.05), (10, 0.0)])
def test_learning_rate_by_hand(step, rate):
    assert learning_rate(step, peak=0.1, total=10, warmup=2) == pytest.approx(rate)
    assert learning_rate(7, peak=0.1, total=10, schedule="constant") == 0.1


def test_a_step_lowers_the_loss_on_its_batch():
    model = _tiny()
    optimizer = make_optimizer("sgd", model, lr=0.05, momentum=0.9, weight_decay=0.0)
    images, target = torch.randn(8, 3, 12, 12), torch.arange(8) % 4
    losses = [train_step(model, optimizer, images, target)["loss"] for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]


def test_nan_stops_before_the_update():
    model = _Fixed(torch.full((1, 2, 3), math.nan))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(NotFinite):
        train_step(model, optimizer, torch.zeros(2, 1), torch.tensor([0, 1]))
    assert model.logits.grad is None


def test_unequal_slices_weighted_by_size_give_the_gradient_of_the_whole_batch():
    """Two ranks with 3 and 1 of 4 images; DDP averages their gradients."""
    logits, target = torch.randn(2, 4, 3), torch.tensor([0, 1, 2, 0])

    def gradient(part, weight):
        model = _Fixed(logits[:, part].clone())
        train_step(
            model,
            torch.optim.SGD(model.parameters(), lr=0.0),
            torch.zeros(len(target[part]), 1),
            target[part],
            loss_weight=weight,
        )
        return model.logits.grad

    whole = gradient(slice(0, 4), 1.0)
    parts = torch.cat([gradient(slice(0, 3), 3 * 2 / 4), gradient(slice(3, 4), 1 * 2 / 4)], dim=1)
    torch.testing.assert_close(parts / 2, whole)


def test_evaluation_counts_by_hand():
    """Prediction is the argmax of the mean logits over T: step 0 alone would get the first image wrong."""
    logits = torch.tensor([[[0.0, 1.0], [2.0, 0.0]], [[3.0, 0.0], [2.0, 0.0]]])
    model = _Fixed(logits).train()
    sums = evaluate(model, [(torch.zeros(2, 1), torch.tensor([0, 1]))])
    assert (sums["count"], sums["top1"], sums["top5"]) == (2, 1, 2)
    assert means(sums)["top1"] == 0.5
    assert model.training
