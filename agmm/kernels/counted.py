"""A convolution's output on its way to the fused operation: floats, or exact 16-bit integers that autograd follows.

Autograd knows no gradient of integers. So they travel beside an edge: zeros of their shape that take no memory, whose
gradient is theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Counted:
    """A convolution's output.

    Args:
        n: its values, in units of `unit`; or the edge, where `sums` has them.
        sums: the values as int16, or None.
        unit: `[C]`, a constant; None for 1.
        source: what `sums` can be computed from again: the spikes' bits, the weights, and the stride.
        in_units: that `n` is values which have been multiplied by `unit`, also where `sums` has them.

    """

    n: Tensor
    sums: Tensor | None = None
    unit: Tensor | None = None
    in_units: bool = False
    source: tuple[Tensor, Tensor, int] | None = None

    def floats(self) -> Tensor:
        """The values times their unit, at least float32, with the gradient of `n`."""
        n = self.n if self.sums is None or self.in_units else self.sums.float() + self.n
        return n if self.in_units or self.unit is None else n * self.unit.view(-1, 1, 1)

    def over_time(self, steps: int) -> Counted:
        """Of images whose batch is T * B, `[T, B, C, H, W]`."""
        sums = None if self.sums is None else self.sums.unflatten(0, (steps, -1))
        return replace(self, n=self.n.unflatten(0, (steps, -1)), sums=sums)


def counted(n: Tensor | Counted) -> Counted:
    """A convolution's output that may be plain values."""
    return n if isinstance(n, Counted) else Counted(n)


def edge(sums: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros of the shape of `sums`, of which the gradient is in `dtype`."""
    return sums.new_zeros((), dtype=dtype).expand(sums.shape)
