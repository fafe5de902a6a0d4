"""How often neurons fire, per layer and time step. Axes: L neuron layers, T time steps."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from agmm.metrics.hooks import hooked
from agmm.neuron import LIF


class FiringMeter:
    """Counts the spikes of every neuron layer of `model` while `measuring()` lasts, on the model's device.

    Args:
        steps: T of the network.

    `counts_LT2` holds [spikes, neurons] of all samples so far: sums, so that those of several ranks add up.

    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        self._layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LIF)}
        self.names = list(self._layers)
        device = next(model.parameters()).device
        self.counts_LT2 = torch.zeros(len(self.names), steps, 2, dtype=torch.float64, device=device)

    def measuring(self) -> AbstractContextManager[None]:
        """Hooks on the neuron layers while the context lasts."""
        return hooked(self._layers, self._count)

    def _count(self, number: int, _layer: nn.Module, _inputs: tuple[Any, ...], spikes_TB: Tensor) -> None:
        # a sample's spikes, whatever their amplitude, are summed in float32, exact below 2**24 neurons; then in float64
        spikes_T = spikes_TB.detach().bool().float().sum(dim=tuple(range(2, spikes_TB.ndim))).double().sum(dim=1)
        self.counts_LT2[number, :, 0] += spikes_T
        self.counts_LT2[number, :, 1] += spikes_TB[0].numel()


def firing_rates(names: list[str], counts_LT2: Tensor) -> dict[str, list[float]]:
    """Spikes per neuron and time step, 0 to 1, by layer: a list of T."""
    rates_LT = counts_LT2[..., 0] / counts_LT2[..., 1].clamp_min(1)
    return dict(zip(names, rates_LT.tolist(), strict=True))


def total_firing_rate(counts_LT2: Tensor) -> float:
    """Spikes per neuron and time step over all layers: every neuron counts the same, so large layers count more."""
    spikes, neurons = counts_LT2.sum(dim=(0, 1)).tolist()
    return spikes / max(1.0, neurons)
