"""How often weight signs flip (Eq. 8), per layer: between two snapshots, and from step to step."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agmm.binary import BinaryConv2d


def signed_layers(model: nn.Module) -> dict[str, Any]:
    """Block convolutions by name: those with latent weights behind binary ones, or their full-precision stand-ins."""
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "weight_bits")}


@torch.no_grad()
def signs(model: nn.Module) -> dict[str, Tensor]:
    """Which weights act as +1, by layer: boolean tensors on the CPU (0.0 and -0.0 count as +1)."""
    return {name: _positive(layer).cpu() for name, layer in signed_layers(model).items()}


def _positive(layer: Any) -> Tensor:
    """Which weights act as +1. A method may shift its latent weights before it takes signs."""
    shifted = isinstance(layer, BinaryConv2d) and not layer.latent_may_be_sign
    return (layer.binarise()[0] if shifted else layer.weight.detach()) >= 0


def flip_ratio(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    """Flips / N of each layer between two snapshots of `signs` (Eq. 8), and of all layers together as `total`."""
    flips = {name: int((before[name] != after[name]).sum()) for name in after}
    return _per_weight(flips, {name: sign.numel() for name, sign in after.items()})


def log_flip_ratio(ratio: float) -> float:
    """log(flips/N + e^-9), which keeps a layer without flips on the plot, at -9. Helwegen et al. 2019."""
    return math.log(ratio + math.exp(-9))


_STEPS = "steps"


class FlipCounter:
    """Counts sign flips from one step to the next, on the weights' device; one that flips back counts twice."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = signed_layers(model)
        self.restart()

    @torch.no_grad()
    def restart(self, counts: Mapping[str, int] | None = None) -> None:
        """Count from the weights as they are now, on top of `counts` that an earlier counter gave."""
        counts = counts or {}
        self.steps = counts.get(_STEPS, 0)
        self._before = [_positive(layer) for layer in self._layers.values()]
        self._flips = [
            torch.tensor(counts.get(name, 0), dtype=torch.int64, device=sign.device)
            for name, sign in zip(self._layers, self._before, strict=True)
        ]

    def counts(self) -> dict[str, int]:
        """Flips of each layer since the last restart, and the `steps` that they took: what `restart` goes on from."""
        flips = torch.stack(self._flips).tolist() if self._flips else []
        return dict(zip(self._layers, flips, strict=True)) | {_STEPS: self.steps}

    @torch.no_grad()
    def update(self) -> None:
        """Count the flips since the last call; to be called after every optimiser step."""
        self.steps += 1
        for index, layer in enumerate(self._layers.values()):
            now = _positive(layer)
            self._flips[index] += torch.count_nonzero(now != self._before[index])
            self._before[index] = now

    def ratio(self) -> dict[str, float]:
        """Flips / N / steps of each layer since the last restart, and of all layers together as `total`."""
        flips = self.counts()
        ratios = _per_weight(flips, {name: layer.weight.numel() for name, layer in self._layers.items()})
        return {name: value / max(1, self.steps) for name, value in ratios.items()}


def latent_weights(model: nn.Module) -> dict[str, dict[str, float]]:
    """What sets how easily signs flip, per layer and of all layers as `total`.

    `mean_abs` is mean|W|; `beyond_one` is the share with |W| > 1: dead weights, where the straight-through estimator's
    clip cuts the gradient (q_snn and recu have none), so that only momentum and weight decay still move them.
    """
    weights = {name: layer.weight.detach() for name, layer in signed_layers(model).items()}
    sizes = {name: weight.numel() for name, weight in weights.items()}
    return {
        "mean_abs": _per_weight({name: float(w.abs().sum(dtype=torch.float64)) for name, w in weights.items()}, sizes),
        "beyond_one": _per_weight({name: int(torch.count_nonzero(w.abs() > 1)) for name, w in weights.items()}, sizes),
    }


def _per_weight(sums: dict[str, Any], sizes: dict[str, int]) -> dict[str, float]:
    ratios = {name: sums[name] / sizes[name] for name in sizes}
    return ratios | {"total": sum(sums[name] for name in sizes) / max(1, sum(sizes.values()))}


def pack_signs(snapshot: dict[str, Tensor]) -> dict[str, Tensor]:
    """A snapshot as uint8 tensors of 8 signs a byte, in C order, for a checkpoint."""
    return {name: torch.from_numpy(np.packbits(sign.numpy(), axis=None)) for name, sign in snapshot.items()}


def unpack_signs(packed: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The inverse of `pack_signs`, shaped like the layers of `model`."""
    shapes = {name: layer.weight.shape for name, layer in signed_layers(model).items()}
    return {
        name: torch.from_numpy(np.unpackbits(packed[name].numpy(), count=shape.numel()).astype(bool)).reshape(shape)
        for name, shape in shapes.items()
    }
