"""Losses on the logits of every time step. Axes: T time steps, B batch, K classes."""

from torch import Tensor
from torch.nn import functional as F


def mean_step_cross_entropy(logits_TBK: Tensor, target_B: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean over t and samples of the cross-entropy of each step's logits (TET with lambda = 0). A scalar."""
    steps = logits_TBK.shape[0]
    return F.cross_entropy(logits_TBK.flatten(0, 1), target_B.repeat(steps), label_smoothing=label_smoothing)
