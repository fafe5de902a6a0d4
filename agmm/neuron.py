"""Leaky integrate-and-fire neurons (Eq. 1-4) and their surrogate gradient (Eq. 7).

Axes: T time steps, then any shape. State lives within one forward pass and never enters a `state_dict`.
"""

from typing import Any

import torch
from torch import Tensor, nn


class _TriangleSpike(torch.autograd.Function):
    """s = 1[u >= threshold];  ds/du := max(0, width - |u - threshold|) / width**2.  Eq. 3 and 7."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, threshold: float, width: float) -> Tensor:
        ctx.save_for_backward(u)
        ctx.threshold, ctx.width = threshold, width
        return (u >= threshold).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        slope = (ctx.width - (u - ctx.threshold).abs()).clamp_min(0) / ctx.width**2
        return grad * slope, None, None


def triangle_spike(u: Tensor, *, threshold: float, width: float) -> Tensor:
    """Spikes (0 or 1, shaped and typed like the membrane `u`) with a triangular surrogate gradient (Eq. 3, 7)."""
    return _TriangleSpike.apply(u, threshold, width)


def lif_step(
    v: Tensor, x: Tensor, *, leak: float, threshold: float, width: float, detach_reset: bool = False
) -> tuple[Tensor, Tensor]:
    """Leak, integrate, fire, hard reset (Eq. 1, 3, 4). Returns (spike, next membrane), both shaped like `x`."""
    u = leak * v + x
    spike = triangle_spike(u, threshold=threshold, width=width)
    return spike, u * (1 - (spike.detach() if detach_reset else spike))


class LIF(nn.Module):
    """A layer of leaky integrate-and-fire neurons, scanned over time.

    Args:
        leak: share of the membrane that is kept from one step to the next, 0 to 1 (tau of Eq. 1).
        threshold: membrane value at which a neuron fires, above 0 (V_th of Eq. 3).
        surrogate_width: half width of the triangular surrogate, above 0 (gamma of Eq. 7).
        detach_reset: stop the gradient through the reset (Eq. 4). The authors let it flow.

    Raises:
        ValueError: for a parameter outside its range.

    """

    def __init__(
        self, leak: float = 0.5, threshold: float = 1.0, surrogate_width: float = 1.0, detach_reset: bool = False
    ) -> None:
        super().__init__()
        if not 0 <= leak <= 1:
            raise ValueError(f"leak must be within 0 and 1, got {leak}.")
        if threshold <= 0 or surrogate_width <= 0:
            raise ValueError(f"threshold and surrogate_width must be above 0, got {threshold} and {surrogate_width}.")
        self.leak, self.threshold = leak, threshold
        self.surrogate_width, self.detach_reset = surrogate_width, detach_reset

    def forward(self, x_T: Tensor) -> Tensor:
        """Input current `[T, ...]` to spikes of the same shape, in float32 whatever the input's precision."""
        x_T = x_T.float()
        v, spikes = torch.zeros_like(x_T[0]), []
        for x in x_T.unbind(0):
            spike, v = lif_step(
                v,
                x,
                leak=self.leak,
                threshold=self.threshold,
                width=self.surrogate_width,
                detach_reset=self.detach_reset,
            )
            spikes.append(spike)
        return torch.stack(spikes)

    def extra_repr(self) -> str:
        return (
            f"leak={self.leak}, threshold={self.threshold}, "
            f"surrogate_width={self.surrogate_width}, detach_reset={self.detach_reset}"
        )
