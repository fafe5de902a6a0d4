"""The gradient of a binary convolution's weights as a sum over spikes: no spike costs nothing.

A weight's gradient is the sum of the gradients of outputs that its spikes reach. Where few neurons fire, or few do
not, that takes fewer additions than torch's convolution has multiplications; see `agmm/kernels/native/events.cpp`.

Axes: N images (T * B), I input and O output channels, H, W; words are of 64 channels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from agmm.kernels import native
from agmm.kernels.check import TOLERANCE, deviation, verdict
from agmm.packed import native as packed

# The share of neurons that fire, or that do not, up to which it is faster than torch, whose bfloat16 is twice as fast
# as its float32. Measured on Zen 4; on other processors than those of x86-64 nobody has measured.
_MOST = {
    ("avx512", torch.float32): 0.5,
    ("avx512", torch.bfloat16): 0.3,
    ("avx2", torch.float32): 0.4,
    ("avx2", torch.bfloat16): 0.25,
}


def pack(x: Tensor) -> Tensor:
    """Spikes `[N, I, H, W]` as bits with a border, int64 `[N, H + 2, W + 2, words]`."""
    x_NHWI = x.permute(0, 2, 3, 1).contiguous()
    bits = torch.empty(bits_shape(x), dtype=torch.int64)
    packed.pack_spikes(x_NHWI.numpy(), bits.numpy(), threads=torch.get_num_threads())
    return bits


def bits_shape(x: Tensor) -> tuple[int, ...]:
    """The shape of `pack(x)`."""
    images, channels, height, width = x.shape
    return images, height + 2, width + 2, -(-channels // 64)


def weight_gradient(bits: Tensor, grad: Tensor, channels: int) -> Tensor:
    """Spikes as bits with a border, `[N, H + 2, W + 2, words]`, and a gradient `[N, O, H, W]` to `[O, I, 3, 3]`.

    Of a convolution with padding 1 and stride 1. `grad` is float32 or bfloat16, and channels last; so is the result,
    in float32.
    """
    shape = (grad.shape[1], channels, 3, 3)
    dweights = torch.empty(shape, memory_format=torch.channels_last)
    native.weight_gradient(bits, grad, dweights)
    return dweights


def pays(bits: Tensor, channels: int, kind: torch.dtype) -> bool:
    """Whether it is faster than torch's convolution in `kind`, of a function of the spikes alone."""
    if (most := _MOST.get((native.path(), kind), 0.0)) == 0.0:
        return False
    images, rows, columns, _ = bits.shape
    # unsigned: of a signed word the bits of its magnitude would be counted
    spikes = np.bitwise_count(bits.numpy().view(np.uint64)).sum(dtype=np.int64)
    fired = spikes / (images * (rows - 2) * (columns - 2) * channels)
    return bool(min(fired, 1 - fired) <= most)


@torch.compiler.assume_constant_result
def agrees() -> bool:
    """Whether the sums are there and agree with torch's convolution on this machine; see `check.verdict`."""
    return not native.why_not() and verdict(f"sums over spikes ({native.path()})", difference)


def difference() -> str:
    """Where the sums differ from torch's convolution, in words; empty where they agree."""
    for ins, outs, fire in ((64, 32, 0.2), (70, 45, 0.7), (3, 1, 0.5)):
        x = (torch.rand(5, ins, 9, 7) < fire).float()
        grad = torch.randn(5, outs, 9, 7).contiguous(memory_format=torch.channels_last)
        truth = conv2d_weight(x.double(), (outs, ins, 3, 3), grad.double(), padding=1)
        if deviation(weight_gradient(pack(x), grad, ins), truth) > TOLERANCE:
            return f"gradients of weights differ ({ins} and {outs} channels)"
    return ""
