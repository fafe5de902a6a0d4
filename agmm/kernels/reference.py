"""What the fused operation computes, in plain torch and in the modules' own words.

Axes: T time steps, B batch, C channels, H, W.
"""

from torch import Tensor, nn

from agmm.kernels.counted import Counted, counted
from agmm.models.blocks import over_time


def block_end(
    n: Tensor | Counted, r_TBCHW: Tensor | None, norm: nn.Module, gate: nn.Module, neuron: nn.Module | None
) -> tuple[Tensor, Tensor]:
    """A convolution's output and the shortcut's stream to (the new stream, its spikes), both `[T, B, C, H, W]`.

    Without a neuron the spikes are empty.
    """
    x_TBCHW = gate(over_time(norm, counted(n).floats()))
    if r_TBCHW is not None:
        x_TBCHW = x_TBCHW + r_TBCHW
    return x_TBCHW, neuron(x_TBCHW) if neuron else x_TBCHW.new_empty(0)
