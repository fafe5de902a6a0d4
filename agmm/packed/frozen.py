"""A trained network as it acts: latent weights replaced by their signs and scales, all else as in training, in float64.

In float64 the network and its packed form are the same function but for rounding of one part in 10^15, so that they can
be held against each other spike by spike. In float32 a spike whose membrane is within rounding of the threshold may
differ between any two ways of adding up, the training graph's own on two machines among them.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agmm.binary import BinaryConv2d
from agmm.models import SpikingNetwork


class Signs(nn.Module):
    """What arrives at each output of a binary convolution: spikes by sign, `[N, I, H, W]` to `[N, O, H', W']`."""

    def __init__(self, signs: Tensor, stride: tuple[int, ...], padding: tuple[int, ...] | str) -> None:
        super().__init__()
        self.register_buffer("weight", signs)
        self.stride, self.padding = stride, padding
        self.weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64 and bool((4 * x).frac().eq(0).all()):
            # spikes, and averages of four: float32 adds them exactly, in a fraction of the time
            return self._convolution(x.float(), self.weight.float()).double()
        return self._convolution(x, self.weight)

    def _convolution(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, stride=self.stride, padding=self.padding)


class SignConv2d(nn.Module):
    """A binary convolution without latent weights: `scale * conv(x, signs)`.

    Args:
        layer: of which signs and scale are taken as they act in training, in float32.

    """

    weight_bits = 1

    def __init__(self, layer: BinaryConv2d) -> None:
        super().__init__()
        signs, scale = layer.binarise()
        self.signs = Signs(signs.detach().clone(), layer.stride, layer.padding)
        self.register_buffer("scale", scale.detach().clone().view(-1, 1, 1))
        self.scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.signs(x) * self.scale


def frozen(network: SpikingNetwork) -> SpikingNetwork:
    """A copy of `network`, in float64 and evaluation mode on the CPU, whose binary convolutions are `SignConv2d`."""
    fixed = copy.deepcopy(network).cpu().float().eval()
    for parent in list(fixed.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BinaryConv2d):
                setattr(parent, name, SignConv2d(child))
    return fixed.double().requires_grad_(False)
