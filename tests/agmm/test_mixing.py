import numpy as np
import pytest
import torch
from timm.data import mixup
from torch import nn
from torch.nn import functional as F

from agmm.loop import train_step
from agmm.losses import Criterion, mean_step_cross_entropy
from agmm.mixing import mix_images, mix_targets

# Three pairs of 6 x 5 images: blended, cut at a border, left alone.
SHARE = torch.tensor([0.3, 1 - 6 / 30, 1.0])
BOX = torch.tensor([[0, 0, 0, 0], [2, 4, 0, 3], [0, 0, 0, 0]], dtype=torch.int32)


def test_a_pair_on_paper():
    images = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1).expand(2, 1, 1, 2)
    whole, corner = torch.tensor([[0, 0, 0, 0]]), torch.tensor([[0, 1, 1, 2]])
    assert mix_images(images, torch.tensor([0.25]), whole)[:, 0, 0].tolist() == [[2.5, 2.5], [1.5, 1.5]]
    assert mix_images(images, torch.tensor([0.5]), corner)[:, 0, 0].tolist() == [[1, 3], [3, 1]]
    targets = mix_targets(torch.tensor([2, 0]), torch.tensor([0.25]), 3)
    assert targets.tolist() == [[0.75, 0, 0.25], [0.25, 0, 0.75]]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_images_targets_and_loss_are_timms(monkeypatch, smoothing):
    """timm's mode "pair" takes images i and B - 1 - i; smoothing is in its targets, and here in the loss."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(6, 3, 6, 5, generator=generator), torch.tensor([0, 3, 1, 1, 2, 0])
    theirs = mixup.Mixup(mixup_alpha=1, cutmix_alpha=1, mode="pair", label_smoothing=smoothing, num_classes=4)
    cut = np.array([False, True, False])
    monkeypatch.setattr(theirs, "_params_per_elem", lambda _: (SHARE.numpy().copy(), cut))
    monkeypatch.setattr(mixup, "cutmix_bbox_and_lam", lambda *_, **__: (BOX[1].tolist(), float(SHARE[1])))
    order = torch.tensor([0, 2, 4, 5, 3, 1])
    mixed, soft = theirs(images[order].clone(), labels[order])
    ours, targets = mix_images(images, SHARE, BOX), mix_targets(labels, SHARE, 4)
    torch.testing.assert_close(ours[order], mixed)

    logits = torch.randn(2, 6, 4, generator=generator)
    expected = F.cross_entropy(logits[:, order].flatten(0, 1), soft.repeat(2, 1))
    torch.testing.assert_close(mean_step_cross_entropy(logits, targets, label_smoothing=smoothing), expected)


def test_what_is_not_mixed_keeps_its_bytes_and_all_keep_their_layout():
    images = torch.randn(6, 3, 6, 5).to(memory_format=torch.channels_last)
    mixed = mix_images(images, SHARE, BOX)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(mixed[4:], images[4:])
    outside = torch.ones(6, 5, dtype=torch.bool)
    outside[2:4, :3] = False
    assert torch.equal(mixed[2:4][..., outside], images[2:4][..., outside])
    assert torch.equal(mixed[2][:, ~outside], images[3][:, ~outside])


def test_a_step_takes_shares_of_classes():
    """One class with all the share is that class; otherwise the largest share counts as the right answer."""

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([[[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]]))

        def forward(self, images):
            return self.logits

    def step(target, **options):
        model = Logits()
        result = train_step(model, torch.optim.SGD(model.parameters(), lr=1.0), torch.zeros(2, 1), target, **options)
        return result, model.logits.detach()

    labels = torch.tensor([0, 1])
    (hard, hard_logits), (soft, soft_logits) = (
        step(target, criterion=Criterion(label_smoothing=0.1)) for target in (labels, F.one_hot(labels, 3).float())
    )
    assert hard["correct"] == soft["correct"] == 1
    assert soft["loss"] == pytest.approx(hard["loss"])
    torch.testing.assert_close(soft_logits, hard_logits)
    assert step(torch.tensor([[0.6, 0.4, 0.0], [0.4, 0.0, 0.6]]))[0]["correct"] == 2
