"""Mixup and CutMix of pairs of images, given what was drawn. Axes: B batch, P pairs, C channels, H, W, K classes."""

import torch
from torch import Tensor
from torch.nn import functional as F


def mix_images(images_BCHW: Tensor, share_P: Tensor, box_P4: Tensor) -> Tensor:
    """Mix images 2p and 2p + 1 of a batch with each other; timm's Mixup in its mode "pair", on neighbours.

    A pair with a box (top, bottom, left, right; in pixels, ends excluded) exchanges it (CutMix, Yun et al., 2019). One
    whose box is empty is blended: `share_P` of the image itself, the rest of its neighbour (Mixup, Zhang et al., 2018);
    a share of 1 leaves it alone. Layout and type stay as they are.
    """
    weight_P1HW = _weights(share_P, box_P4, *images_BCHW.shape[-2:])
    weight_BCHW = weight_P1HW.repeat_interleave(2, dim=0).to(images_BCHW)
    return torch.lerp(_neighbours(images_BCHW), images_BCHW, weight_BCHW)


def mix_targets(labels_B: Tensor, share_P: Tensor, num_classes: int) -> Tensor:
    """Soft targets [B, K]: each image's own class gets the share that it kept, its neighbour's class the rest."""
    own_BK = F.one_hot(labels_B, num_classes).float()
    share_B1 = share_P.to(own_BK).repeat_interleave(2)[:, None]
    return own_BK * share_B1 + _neighbours(own_BK) * (1 - share_B1)


def _neighbours(batch: Tensor) -> Tensor:
    return batch.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _weights(share_P: Tensor, box_P4: Tensor, height: int, width: int) -> Tensor:
    """How much of itself each pixel keeps, [P, 1, H, W]."""
    top, bottom, left, right = box_P4[:, :, None, None].unbind(1)
    y, x = torch.arange(height, device=box_P4.device)[:, None], torch.arange(width, device=box_P4.device)
    inside_PHW = (top <= y) & (y < bottom) & (left <= x) & (x < right)
    cut_P11 = (bottom > top) & (right > left)
    return torch.where(cut_P11, (~inside_PHW).float(), share_P.float()[:, None, None])[:, None]
