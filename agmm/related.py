"""Binary convolutions of related methods: how each makes signs, scale and gradient from its latent weights."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from agmm.binary import BinaryConv2d, channel_scale, hard_sign, sign_ste

_SMALLEST_DEVIATION = 1e-5


def standardise(w: Tensor) -> Tensor:
    """(W - mean) / std of each output channel, differentiable: `[O, I, kh, kw]`, same shape."""
    deviation = w.std(dim=(1, 2, 3), keepdim=True).clamp_min(_SMALLEST_DEVIATION)
    return (w - w.mean(dim=(1, 2, 3), keepdim=True)) / deviation


class XnorConv2d(BinaryConv2d):
    """B = mean|W| * sign(W) with the gradient of the scale kept; `BinaryConv2d` detaches it.

    XNOR-Net, Rastegari et al. 2016 (arXiv 1603.05279), section 3.1.
    """

    latent_may_be_sign = False  # the scale's gradient is of |W|

    def binarise(self) -> tuple[Tensor, Tensor]:
        return sign_ste(self.weight, clip=self.clip), channel_scale(self.weight)


class LearnedScaleConv2d(BinaryConv2d):
    """B = a_c * sign(W) with `a_c` a parameter of each output channel, at first mean|W_c|.

    XNOR-Net++, Bulat and Tzimiropoulos 2019 (arXiv 1909.13863), its first form.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)
        self.scale = nn.Parameter(torch.empty(out_channels))
        self.reset_scale()

    @torch.no_grad()
    def reset_scale(self) -> None:
        """Set the scale to what the weights as they are would have; networks do after initialising weights."""
        self.scale.copy_(channel_scale(self.weight).flatten())

    def binarise(self) -> tuple[Tensor, Tensor]:
        return sign_ste(self.weight, clip=self.clip), self.scale.view(-1, 1, 1, 1)


class ScheduledConv2d(BinaryConv2d):
    """A binary convolution that changes with `progress`, the share of the training that is done, 0 to 1."""

    latent_may_be_sign = False
    progress: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)
        # in the state_dict, because it takes part in the value; a tensor, because a number would be compiled in
        self.register_buffer("progress", torch.zeros(()))


class _SignEDE(torch.autograd.Function):
    """b = sign(w), +1 for zero;  db/dw := k * t * (1 - tanh(t * w)**2) with k = max(1 / t, 1)."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, t: Tensor) -> Tensor:
        ctx.save_for_backward(w, t)
        return hard_sign(w)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        w, t = ctx.saved_tensors
        slope = (1 / t).clamp_min(1) * t * (1 - torch.tanh(t * w) ** 2)
        return grad * slope, None


def sign_ede(w: Tensor, t: Tensor) -> Tensor:
    """Signs of `w` (+1 for zero) with the derivative of a tanh of steepness `t`, a scalar tensor.

    Error decay estimator of IR-Net, Qin et al. 2020 (arXiv 1909.10788), Eq. 10 and 11.
    """
    return _SignEDE.apply(w, t)


class QSNNConv2d(ScheduledConv2d):
    """Signs of the standardised weight, a power of two as scale, an estimator that steepens from t = 0.1 to 10.

    w = (W - mean) / std;  B = 2^round(log2(mean|w|)) * sign(w), the scale detached;  t = 10^(2 * progress - 1).
    The scale multiplies the gradient too, as in IR-Net, whose quantiser this is. Q-SNN, Wei et al. 2024
    (arXiv 2406.13672), weight-spike dual regulation; its loss term is `agmm.losses.FiringPenalty`.
    """

    def binarise(self) -> tuple[Tensor, Tensor]:
        w = standardise(self.weight)
        scale = torch.exp2(torch.round(torch.log2(channel_scale(w.detach()))))
        return sign_ede(w, 10 ** (2 * self.progress - 1)), scale


class ReCUConv2d(ScheduledConv2d):
    """Signs of standardised weights whose tails are clamped, which revives weights that would never flip.

    w = clamp(standardise(W), -Q, Q) with Q = -mean|w| * ln(2 - 2 * tau), the tau-quantile of a Laplace distribution,
    detached, and tau = A * e^progress + B from 0.85 to 0.99; B = mean|w| * sign(w), the scale detached; the gradient of
    the sign is the scale, that of the clamp its own. ReCU, Xu et al. 2021 (arXiv 2103.12369), Eq. 9 and 10; its authors
    learn the scale, which the batch normalisation behind it takes out again.
    """

    def binarise(self) -> tuple[Tensor, Tensor]:
        w = standardise(self.weight)
        tau = 0.85 + (0.99 - 0.85) * torch.expm1(self.progress) / math.expm1(1)
        limit = (-w.abs().mean() * torch.log(2 - 2 * tau)).detach()
        clamped = torch.minimum(torch.maximum(w, -limit), limit)
        return sign_ste(clamped, clip=False), channel_scale(clamped.detach())


def set_progress(model: nn.Module, progress: float) -> None:
    """Tell the scheduled layers of `model` which share of the training is done, 0 to 1. Others need not know."""
    for layer in model.modules():
        if isinstance(layer, ScheduledConv2d):
            layer.progress.fill_(progress)
