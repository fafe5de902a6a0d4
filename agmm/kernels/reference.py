"""What the fused operation computes, in plain torch and in the modules' own words.

Axes: T time steps, B batch, C channels, H, W.
"""

from torch import Tensor, nn

from agmm.models.blocks import over_time


def block_end(
    n_TBCHW: Tensor,
    r_TBCHW: Tensor | None,
    norm: nn.Module,
    gate: nn.Module,
    neuron: nn.Module,
    unit_C: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A convolution's output and the shortcut's stream to (the new stream, its spikes), both `[T, B, C, H, W]`.

    The output is in units of `unit_C`, such as the scale of binary weights; None is 1.
    """
    if unit_C is not None:
        n_TBCHW = n_TBCHW * unit_C.view(-1, 1, 1)
    x_TBCHW = gate(over_time(norm, n_TBCHW))
    if r_TBCHW is not None:
        x_TBCHW = x_TBCHW + r_TBCHW
    return x_TBCHW, neuron(x_TBCHW)
