"""Mean and variance of the gradients that reach each layer (Proposition 1).

Axes: L block convolutions, T time steps, B batch, C channels, H, W.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from agmm.metrics.flips import signed_layers
from agmm.metrics.hooks import hooked


class GradientMeter:
    """Moments of dL/dX of each block convolution's output X, per time step, while `measuring()` lasts.

    Args:
        steps: T of the network; a convolution's batch is T * B, time first.

    `moments_LT3` holds [count, sum, sum of squares] over samples, channels and pixels, in float64: sums, so that those
    of several ranks add up.

    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        self._layers = signed_layers(model)
        self._steps = steps
        self.names = list(self._layers)
        device = next(model.parameters()).device
        self.moments_LT3 = torch.zeros(len(self.names), steps, 3, dtype=torch.float64, device=device)

    def measuring(self) -> AbstractContextManager[None]:
        """Hooks on the block convolutions while the context lasts: it must cover the forward and the backward pass."""
        return hooked(self._layers, self._watch)

    def _watch(self, number: int, _layer: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: self._add(number, gradient))

    def _add(self, number: int, gradient: Tensor) -> None:
        gradient_TBCHW = gradient.detach().double().unflatten(0, (self._steps, -1))
        axes = tuple(range(1, gradient_TBCHW.ndim))
        self.moments_LT3[number, :, 0] += gradient_TBCHW[0].numel()
        self.moments_LT3[number, :, 1] += gradient_TBCHW.sum(dim=axes)
        self.moments_LT3[number, :, 2] += gradient_TBCHW.square().sum(dim=axes)


def gradient_statistics(names: list[str], moments_LT3: Tensor) -> dict[str, dict[str, list[float]]]:
    """`mean` and `variance` (of the population) per layer, lists of T."""
    count_LT, sum_LT, squares_LT = moments_LT3.unbind(-1)
    mean_LT = sum_LT / count_LT
    variance_LT = (squares_LT / count_LT - mean_LT.square()).clamp_min(0)
    return {
        "mean": dict(zip(names, mean_LT.tolist(), strict=True)),
        "variance": dict(zip(names, variance_LT.tolist(), strict=True)),
    }


def weight_gradient_statistics(model: nn.Module) -> dict[str, dict[str, float]]:
    """`mean` and `variance` (of the population) of the gradient of each block convolution's latent weights.

    To be called between a backward pass and the next `zero_grad`.
    """
    moments = {
        name: torch.var_mean(layer.weight.grad.double(), correction=0) for name, layer in signed_layers(model).items()
    }
    return {
        "mean": {name: float(mean) for name, (_, mean) in moments.items()},
        "variance": {name: float(variance) for name, (variance, _) in moments.items()},
    }
