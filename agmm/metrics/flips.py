"""How often weight signs flip (Eq. 8), per layer."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agmm.binary import BinaryConv2d


def signed_layers(model: nn.Module) -> dict[str, nn.Parameter]:
    """Latent weights of the block convolutions by layer name: binary ones, or their full-precision stand-ins."""
    return {name: layer.weight for name, layer in model.named_modules() if hasattr(layer, "weight_bits")}


@torch.no_grad()
def signs(model: nn.Module) -> dict[str, Tensor]:
    """Which weights act as +1, by layer: boolean tensors on the CPU (0.0 and -0.0 count as +1)."""
    layers = ((name, layer) for name, layer in model.named_modules() if hasattr(layer, "weight_bits"))
    return {name: (_acting(layer) >= 0).cpu() for name, layer in layers}


def _acting(layer: Any) -> Tensor:
    """The weights whose signs act: a method may shift its latent weights before it takes signs."""
    return layer.binarise()[0] if isinstance(layer, BinaryConv2d) else layer.weight


def flip_ratio(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    """Flips / N of each layer between two snapshots of `signs` (Eq. 8), and of all layers together as `total`."""
    flips = {name: int((before[name] != after[name]).sum()) for name in after}
    ratios = {name: flips[name] / after[name].numel() for name in after}
    return ratios | {"total": sum(flips.values()) / max(1, sum(sign.numel() for sign in after.values()))}


def pack_signs(snapshot: dict[str, Tensor]) -> dict[str, Tensor]:
    """A snapshot as uint8 tensors of 8 signs a byte, in C order, for a checkpoint."""
    return {name: torch.from_numpy(np.packbits(sign.numpy(), axis=None)) for name, sign in snapshot.items()}


def unpack_signs(packed: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The inverse of `pack_signs`, shaped like the layers of `model`."""
    shapes = {name: weight.shape for name, weight in signed_layers(model).items()}
    return {
        name: torch.from_numpy(np.unpackbits(packed[name].numpy(), count=shape.numel()).astype(bool)).reshape(shape)
        for name, shape in shapes.items()
    }
