"""Losses on the logits of every time step. Axes: T time steps, B batch, K classes."""

from torch import Tensor
from torch.nn import functional as F


def mean_step_cross_entropy(logits_TBK: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean over t and samples of the cross-entropy of each step's logits (TET with lambda = 0). A scalar.

    `target` holds classes [B] or, for mixed images, shares of the classes [B, K]; smoothing applies to either.
    """
    target_TB = target.expand(logits_TBK.shape[0], *target.shape)
    return F.cross_entropy(logits_TBK.flatten(0, 1), target_TB.flatten(0, 1), label_smoothing=label_smoothing)
