"""The operations of an inference, counted exactly on real data, per layer.

A SOP is one accumulation: a non-zero input value that arrives at one output of a layer. A layer counts SOPs where no
multiplication is needed: its weights are binary, or its inputs were 0 or one other value, which the layer's scale
absorbs. Any other layer counts MACs, one per weight that meets an input value. So average-pooled spikes into a binary
convolution are SOPs (a sign is added or subtracted, whatever the value), and into a full-precision one MACs. Zero
padding is no input and counts nothing.

Batch normalisation and a constant gate fold into the convolution before them and are not counted; nor are neuron
updates, pooling and residual additions, which all networks of a kind share. The trainable gate depends on its input and
does not fold: one MAC per element, an addition for its mean and a multiplication.

Axes: N = T * B or B images, I input channels, O output channels, H, W.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from agmm.metrics.hooks import hooked
from agmm.modulation import AGMM


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs for one image, over all its time steps."""

    name: str
    macs: float
    sops: float
    weight_bytes: float  # read: all weights, once per application of the layer to the image


@dataclass
class _Tally:
    """Sums over everything that a layer has seen."""

    connections: int = 0  # pairs of an input value and an output
    arrivals: Any = 0  # those whose input value is not zero; a tensor on the device
    all_spikes: Any = True  # whether the input values of each batch were 0 and one other
    applications: int = 0  # of the layer, to one image at one time step


class OperationMeter:
    """Counts the operations of convolutions, linear layers and gates of `model` while `measuring()` lasts.

    `counts_L4` holds, of the layers in the order of the model, [connections, arrivals, whether values were more than 0
    and one other, applications]: sums, so that those of several ranks add up.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = {name: layer for name, layer in model.named_modules() if _costs(layer)}
        self._tallies = [_Tally() for _ in self._layers]

    def measuring(self) -> AbstractContextManager[None]:
        """Hooks on the layers while the context lasts."""
        return hooked(self._layers, self._count)

    @property
    def counts_L4(self) -> Tensor:  # noqa: N802, axes in the name
        """The sums so far, float64 on the CPU: exact below 2**53."""
        rows = [(t.connections, int(t.arrivals), not bool(t.all_spikes), t.applications) for t in self._tallies]
        return torch.tensor(rows, dtype=torch.float64).view(-1, 4)

    @property
    def connections(self) -> int:
        """Pairs of an input value and an output so far: MACs, if every layer multiplied, binary ones too."""
        return sum(tally.connections for tally in self._tallies)

    def per_image(self, images: float, counts_L4: Tensor | None = None) -> list[LayerCost]:
        """The means over the `images` that have passed, by layer; of `counts_L4` where other ranks' are in it."""
        counts = (self.counts_L4 if counts_L4 is None else counts_L4).tolist()
        return [
            _cost(name, layer, row, images) for (name, layer), row in zip(self._layers.items(), counts, strict=True)
        ]

    def _count(self, number: int, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        tally, x = self._tallies[number], inputs[0].detach()
        if isinstance(layer, AGMM):
            tally.connections += x.numel()
            tally.all_spikes = False
            return
        if isinstance(layer, nn.Conv2d):
            connections, arrivals = _convolution(layer, x, output)
            tally.applications += x.shape[0]
        else:
            connections, arrivals = x.numel() * output.shape[-1], torch.count_nonzero(x) * output.shape[-1]
            tally.applications += x.numel() // x.shape[-1]
        tally.connections += connections
        tally.arrivals += arrivals
        if _weight_bits(layer) > 1:
            tally.all_spikes &= ((x == 0) | (x == x.max())).all()


def fan_out(layer: nn.Conv2d, input_HW: torch.Size, output_HW: torch.Size) -> Tensor:
    """How many outputs each pixel of an input channel reaches: int64 `[H, W]`, less at borders and under strides.

    It is the gradient of the sum of a convolution whose weights are all one. The padding is of zeros, given in numbers.
    """
    windows = conv2d_input(
        (1, 1, *input_HW),
        torch.ones(1, 1, *layer.kernel_size),
        torch.ones(1, 1, *output_HW),
        layer.stride,
        layer.padding,
        layer.dilation,
    )
    return windows[0, 0].long() * (layer.out_channels // layer.groups)


def _convolution(layer: nn.Conv2d, x_NIHW: Tensor, output: Tensor) -> tuple[int, Tensor]:
    """Pairs of an input value and an output, and those of them whose value is not zero."""
    fan_out_HW = fan_out(layer, x_NIHW.shape[2:], output.shape[2:])
    # several times faster than count_nonzero on a CPU, and exact below 2**24 images x channels
    non_zero_HW = x_NIHW.bool().float().sum(dim=(0, 1)).long()
    connections = x_NIHW.shape[0] * x_NIHW.shape[1] * int(fan_out_HW.sum())
    return connections, (non_zero_HW * fan_out_HW.to(x_NIHW.device)).sum()


def _cost(name: str, layer: nn.Module, counts_4: list[float], images: float) -> LayerCost:
    connections, arrivals, others, applications = counts_4
    is_spiking = _weight_bits(layer) == 1 or not others
    weights: Any = getattr(layer, "weight", None)
    read = 0.0 if weights is None else weights.numel() * _weight_bits(layer) / 8 * applications
    macs, sops = (0.0, arrivals) if is_spiking else (connections, 0.0)
    return LayerCost(name, macs / images, sops / images, read / images)


def _costs(layer: nn.Module) -> bool:
    # a backward-only gate passes values as they are
    return isinstance(layer, nn.Conv2d | nn.Linear) or (isinstance(layer, AGMM) and layer.kind != "backward_only")


def _weight_bits(layer: nn.Module) -> int:
    return int(getattr(layer, "weight_bits", 32))


def totals(layers: Iterable[LayerCost]) -> dict[str, float]:
    """`macs`, `sops` and `weight_bytes` of all layers, per image."""
    rows = list(layers)
    return {key: sum(getattr(row, key) for row in rows) for key in ("macs", "sops", "weight_bytes")}
