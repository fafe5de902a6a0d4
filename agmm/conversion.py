"""From rectified activations to spike rates with the same weights: threshold balancing.

A network with `agmm.neuron.Rectify` is trained; each of them becomes a `RateIF` whose level is a high percentile of its
activations, so that few are cut and rates are not tiny (Rueckauer et al. 2017, Front. Neurosci. 11:682, section 2.2).
Levels multiply spikes and stay out of the weights, so that binary weights stay binary.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agmm.metrics.hooks import hooked
from agmm.neuron import Rectify


@torch.inference_mode()
def calibrate(network: nn.Module, batches: Iterable[Tensor], percentile: float = 99.9) -> dict[str, float]:
    """The level of every `Rectify` of `network`, by its name, from normalised images `[B, C, H, W]`.

    It is the percentile of the layer's activations in a batch, zeros included, averaged over batches by their images;
    their maximum would grow with the number of batches. A layer whose percentile is 0 stays silent. The network is left
    in the mode it was in.

    Raises:
        ValueError: for a percentile that is not above 0 and at most 100, a network without `Rectify`, and no images.

    """
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile must be above 0 and at most 100, got {percentile}. 99.9 suits most networks.")
    layers = _rectified(network)
    sums, images = [0.0] * len(layers), 0

    def add(number: int, _layer: nn.Module, _inputs: tuple[Any, ...], activations_TB: Tensor) -> None:
        values = activations_TB.float().cpu().numpy()  # torch.quantile takes 16 million values at most
        sums[number] += float(np.percentile(values, percentile)) * activations_TB.shape[1]

    was_training = network.training
    network.eval()
    try:
        with hooked(layers, add):
            for batch in batches:
                network(batch)
                images += len(batch)
    finally:
        network.train(was_training)
    if images == 0:
        raise ValueError("There are no images to calibrate with.")
    return {name: total / images for name, total in zip(layers, sums, strict=True)}


def _rectified(network: nn.Module) -> dict[str, Rectify]:
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, Rectify)}
    if not layers:
        raise ValueError("The network has no rectified activations to convert. Train it with model.neuron.kind=relu.")
    return layers


def rate_coded(state: dict[str, Tensor], levels: dict[str, float]) -> dict[str, Tensor]:
    """The `state_dict` of the same network with `RateIF` neurons, from that of the calibrated one and its levels."""
    return state | {f"{name}.level": torch.tensor(level) for name, level in levels.items()}
