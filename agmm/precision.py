"""What stays in float32 under mixed precision."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32 where it is of a lower precision; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
