"""The single-convolution double-skip block, on a real-valued stream `[T, B, C, H, W]`."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from agmm.methods import get_method
from agmm.modulation import make_gate
from agmm.neuron import LIF


@dataclass(frozen=True)
class BlockSpec:
    """What all blocks of a network share."""

    num_steps: int
    method: str
    gate_kind: str
    gate_scope: str
    leak: float
    threshold: float
    surrogate_width: float
    detach_reset: bool

    def make_neuron(self) -> LIF:
        """A fresh neuron layer."""
        return LIF(self.leak, self.threshold, self.surrogate_width, self.detach_reset)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that stays in float32 under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def over_time(module: Callable[[Tensor], Tensor], x_TBCHW: Tensor) -> Tensor:
    """Apply an image module to every step: T is folded into the batch, so statistics run over T * B."""
    return module(x_TBCHW.flatten(0, 1)).unflatten(0, x_TBCHW.shape[:2])


class SpikingBlock(nn.Module):
    """x + shortcut: `LIF -> 3x3 convolution -> BN -> gate`, added to the stream.

    The shortcut is the identity, or AvgPool(2) -> full-precision 1x1 convolution -> BN where the shape changes.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, spec: BlockSpec) -> None:
        super().__init__()
        method = get_method(spec.method)
        self.neuron = spec.make_neuron()
        self.conv = method.conv(in_channels, out_channels, 3, stride=stride, padding=1)
        self.norm = BatchNorm2d(out_channels)
        self.gate = make_gate(spec.gate_kind if method.gated else "none", spec.gate_scope, spec.num_steps)
        self.shortcut = nn.Identity() if in_channels == out_channels else _projection(in_channels, out_channels, stride)

    def forward(self, x_TBCHW: Tensor) -> Tensor:
        current = over_time(lambda s: self.norm(self.conv(s)), self.neuron(x_TBCHW))
        return self.gate(current) + over_time(self.shortcut, x_TBCHW)


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    # ceil_mode keeps odd sizes in step with the strided 3x3 convolution
    pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
    return nn.Sequential(pool, nn.Conv2d(in_channels, out_channels, 1, bias=False), BatchNorm2d(out_channels))
