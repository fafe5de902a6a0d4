"""What a network costs to store. Precision lives on the layer: `weight_bits` of a convolution, 32 for all else."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from agmm.related import LearnedScaleConv2d


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by kind; the scales of binary layers and BN's running statistics are not counted."""

    binary: int
    real: int

    @property
    def total(self) -> int:
        """All parameters but the scales."""
        return self.binary + self.real

    @property
    def megabytes(self) -> float:
        """Decimal megabytes at one bit a binary weight and four bytes for every other parameter."""
        return (self.binary / 8 + 4 * self.real) / 1e6

    @property
    def full_precision_megabytes(self) -> float:
        """Decimal megabytes at four bytes a parameter."""
        return 4 * self.total / 1e6


def count_parameters(model: nn.Module) -> ParameterCount:
    """Parameters of `model`, those that act as one bit apart."""
    layers: list[Any] = list(model.modules())
    binary = sum(layer.weight.numel() for layer in layers if getattr(layer, "weight_bits", 32) == 1)
    scales = sum(layer.scale.numel() for layer in layers if isinstance(layer, LearnedScaleConv2d))
    total = sum(p.numel() for p in model.parameters()) - scales
    return ParameterCount(binary=binary, real=total - binary)
