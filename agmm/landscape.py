"""The loss around a network's weights, along two filter-normalised random directions (Li et al. 2018).

Directions move the weights of convolutions and linear layers, of a binary layer the latent ones: its signs and scales
follow. Norms, biases and other vectors stay where they are.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Direction = dict[str, Tensor]


def random_directions(model: nn.Module, seed: int, count: int = 2) -> list[Direction]:
    """`count` independent directions, by name of the parameter; a function of the seed and the weights alone.

    Each filter (a linear layer's row) of a direction is Gaussian noise with the norm of the network's own filter, so a
    step of 1 is as long as the weights are, in every layer.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {name: p.detach() for name, p in model.named_parameters() if p.ndim > 1}
    return [{name: _like_filters(w, generator) for name, w in weights.items()} for _ in range(count)]


def _like_filters(weight: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(weight.shape, generator=generator).to(weight.device)
    axes = tuple(range(1, weight.ndim))
    return noise * (_norm(weight, axes) / _norm(noise, axes))


def _norm(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return torch.linalg.vector_norm(x, dim=axes, keepdim=True)


@contextmanager
def moved(model: nn.Module, directions: Sequence[Direction], distances: Sequence[float]) -> Iterator[None]:
    """The network at `weights + sum of distance * direction` while the context lasts; then its weights, bit for bit."""
    parameters = dict(model.named_parameters())
    kept = {name: parameters[name].detach().clone() for direction in directions for name in direction}
    try:
        with torch.no_grad():
            for direction, distance in zip(directions, distances, strict=True):
                for name, step in direction.items():
                    parameters[name].add_(step, alpha=distance)
        yield
    finally:
        with torch.no_grad():
            for name, weight in kept.items():
                parameters[name].copy_(weight)
