"""What networks are made of, on `[T, B, C, H, W]`: norms, and the block of a neuron and a convolution."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agmm.methods import get_method
from agmm.modulation import make_gate
from agmm.neuron import make_neuron
from agmm.precision import at_least_float32

NORMS = ("bn", "tebn")


@dataclass(frozen=True)
class BlockSpec:
    """What all blocks of a network share; its fields are arguments of every network.

    Args:
        num_steps: T.
        method: see `agmm.methods`.
        gate_kind, gate_scope: see `agmm.modulation`; of methods that have a gate.
        norm: `bn`, or `tebn` with a trainable factor per time step.
        neuron: kind of neuron, see `agmm.neuron.NEURONS`.
        leak, threshold, surrogate_width, detach_reset, reset: see `agmm.neuron.LIF`.

    """

    num_steps: int = 4
    method: str = "agmm"
    gate_kind: str = "agmm"
    gate_scope: str = "sample"
    norm: str = "bn"
    neuron: str = "lif"
    leak: float = 0.5
    threshold: float = 1.0
    surrogate_width: float = 1.0
    detach_reset: bool = False
    reset: str = "hard"

    def make_neuron(self) -> nn.Module:
        """A fresh neuron layer."""
        return make_neuron(
            self.neuron,
            leak=self.leak,
            threshold=self.threshold,
            surrogate_width=self.surrogate_width,
            detach_reset=self.detach_reset,
            reset=self.reset,
        )

    def make_conv(self, in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
        """The method's 3x3 convolution."""
        return get_method(self.method).conv(in_channels, out_channels, 3, stride=stride, padding=1)

    def make_norm(self, channels: int) -> nn.Module:
        """A fresh norm over images whose batch is T * B, time first. Raises ValueError for an unknown one."""
        if self.norm not in NORMS:
            raise ValueError(f"Unknown norm {self.norm!r}. Known: {', '.join(NORMS)}. Set model.norm.")
        return BatchNorm2d(channels) if self.norm == "bn" else TemporalBatchNorm2d(channels, self.num_steps)

    def make_gate(self) -> nn.Module:
        """The gate behind a convolution, the identity where the method has none."""
        return make_gate(self.gate_kind if get_method(self.method).gated else "none", self.gate_scope, self.num_steps)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that stays in float32 under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(at_least_float32(x))


class TemporalBatchNorm2d(BatchNorm2d):
    """Batch normalisation over T * B, then a trainable factor per time step, at first 1.

    TEBN, Duan et al. 2022 (NeurIPS), Eq. 6. Input and output `[T * B, C, H, W]`, time first.
    """

    def __init__(self, channels: int, num_steps: int) -> None:
        super().__init__(channels)
        self.factor = nn.Parameter(torch.ones(num_steps))

    def forward(self, x: Tensor) -> Tensor:
        steps = self.factor.shape[0]
        if x.shape[0] % steps:
            raise ValueError(f"The norm was built for {steps} time steps and got a batch of {x.shape[0]}.")
        normed_TBCHW = super().forward(x).unflatten(0, (steps, -1))
        return (normed_TBCHW * self.factor.view(-1, 1, 1, 1, 1)).flatten(0, 1)


def over_time(module: Callable[[Tensor], Tensor], x_TBCHW: Tensor) -> Tensor:
    """Apply an image module to every step: T is folded into the batch, so statistics run over T * B."""
    return module(x_TBCHW.flatten(0, 1)).unflatten(0, x_TBCHW.shape[:2])


class SpikingBlock(nn.Module):
    """x + shortcut: `neuron -> 3x3 convolution -> norm -> gate`, added to the stream.

    The shortcut is the identity, or AvgPool(2) -> full-precision 1x1 convolution -> norm where the shape changes.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, spec: BlockSpec) -> None:
        super().__init__()
        self.neuron = spec.make_neuron()
        self.conv = spec.make_conv(in_channels, out_channels, stride)
        self.norm = spec.make_norm(out_channels)
        self.gate = spec.make_gate()
        same = in_channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if same else _projection(in_channels, out_channels, stride, spec)

    def forward(self, x_TBCHW: Tensor) -> Tensor:
        current = over_time(lambda s: self.norm(self.conv(s)), self.neuron(x_TBCHW))
        return self.gate(current) + over_time(self.shortcut, x_TBCHW)


def _projection(in_channels: int, out_channels: int, stride: int, spec: BlockSpec) -> nn.Sequential:
    # ceil_mode keeps odd sizes in step with the strided 3x3 convolution
    pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
    return nn.Sequential(pool, nn.Conv2d(in_channels, out_channels, 1, bias=False), spec.make_norm(out_channels))


class FeedForwardBlock(nn.Module):
    """`3x3 convolution -> norm -> gate -> neuron`, without a shortcut: spikes to spikes."""

    def __init__(self, in_channels: int, out_channels: int, spec: BlockSpec) -> None:
        super().__init__()
        self.conv, self.norm = spec.make_conv(in_channels, out_channels), spec.make_norm(out_channels)
        self.gate, self.neuron = spec.make_gate(), spec.make_neuron()

    def forward(self, x_TBCHW: Tensor) -> Tensor:
        return self.neuron(self.gate(over_time(lambda s: self.norm(self.conv(s)), x_TBCHW)))
