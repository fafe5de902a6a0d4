"""Binary weights (Eq. 5): the sign of a latent weight, one scale per output channel, a straight-through gradient.

Spikes are 0 or 1 and binary weights +-1, so the convolution of the two is an integer and exact in float32; the scale is
applied after it. `agmm.related` has the binary convolutions of other methods.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agmm.precision import at_least_float32

_SMALLEST_SCALE = 1e-8  # keeps an all-zero channel's gradient finite


def hard_sign(w: Tensor) -> Tensor:
    """+1 where w >= 0 (also 0.0 and -0.0), else -1, in the type of `w`."""
    return (w >= 0).to(w.dtype).mul_(2).sub_(1)  # a fourth of the time of `where`


class _SignSTE(torch.autograd.Function):
    """b = +1 where w >= 0 (also 0.0 and -0.0), else -1;  dL/dw := dL/db / scale * 1[|w| <= 1].

    `scale` is what the caller multiplies the convolution's result by. The gradient that arrives has been multiplied by
    it too; the straight-through estimator of the method is of `scale * b`, so it is divided out again. Eq. 5.
    """

    @staticmethod
    def forward(ctx: Any, w: Tensor, scale: Tensor, clip: bool) -> Tensor:
        ctx.save_for_backward(w, scale)
        ctx.clip = clip
        return hard_sign(w)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        w, scale = ctx.saved_tensors
        grad = grad / scale
        return (grad.mul_(w.abs() <= 1) if ctx.clip else grad), None, None


class _LatentSTE(torch.autograd.Function):
    """w itself, for who takes its sign, with the gradient of `_SignSTE`."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, scale: Tensor, clip: bool) -> Tensor:
        ctx.save_for_backward(w, scale)
        ctx.clip = clip
        return w.view_as(w)

    backward = _SignSTE.backward


def latent_ste(w: Tensor, scale: Tensor, *, clip: bool = True) -> Tensor:
    """As `sign_ste`, for who takes the signs of `w` on the way: no copy of the weights is made or kept."""
    return _LatentSTE.apply(w, scale, clip)


def sign_ste(w: Tensor, scale: Tensor | float = 1.0, *, clip: bool = True) -> Tensor:
    """Signs of `w` (+1 for zero) with the straight-through gradient `grad / scale`, cut where |w| > 1 if `clip`."""
    return _SignSTE.apply(w, torch.as_tensor(scale, dtype=w.dtype, device=w.device), clip)


def channel_scale(w: Tensor) -> Tensor:
    """mean|W| of each output channel: `[O, I, kh, kw]` to `[O, 1, 1, 1]`. Eq. 5."""
    return w.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(_SMALLEST_SCALE)


class BinaryConv2d(nn.Conv2d):
    """A convolution whose weights act as `scale * sign(W)`; `weight` holds the latent W. No bias.

    A related method is a subclass with its own `binarise`.

    Args:
        clip: cut the gradient of latent weights with |W| > 1 (the straight-through estimator's clip).

    """

    weight_bits = 1
    latent_may_be_sign = True  # only sign(W) acts and has a gradient, so W may be +-1, as Bop has it

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        clip: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.clip = clip

    def binarise(self) -> tuple[Tensor, Tensor]:
        """The signs that act, shaped like `weight`, and what multiplies them, `[O, 1, 1, 1]`."""
        scale = channel_scale(self.weight.detach())
        return sign_ste(self.weight, scale, clip=self.clip), scale

    def forward(self, x: Tensor) -> Tensor:
        """Spikes `[N, I, H, W]` to `[N, O, H', W']`, float32 also under autocast."""
        signs, scale = self.binarise()
        counts = F.conv2d(x, signs, stride=self.stride, padding=self.padding)
        return at_least_float32(counts) * scale.view(-1, 1, 1)


class RealConv2d(nn.Conv2d):
    """The full-precision stand-in for `BinaryConv2d`, for comparison. No bias."""

    weight_bits = 32

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=False)
