"""Binary weights without latent ones: an optimiser that flips signs."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from agmm.binary import BinaryConv2d, hard_sign


class Bop(SGD):
    """m = (1 - g) * m + g * grad;  w := -w where |m| > threshold and sign(m) = sign(w).  Other weights take SGD's step.

    Helwegen et al. 2019 (arXiv 1906.02107), algorithm 1. Groups of binary weights carry `adaptivity` (g) and
    `flip_threshold`; g falls with the learning rate's schedule, as `lr / initial_lr`, so that flipping ends with it.
    """

    def step(self, closure: Any = None) -> Any:
        """One update. Binary weights are +-1 before and after."""
        groups = self.param_groups
        for group in groups:
            if "flip_threshold" in group:
                self._flip(group)
        self.param_groups = [group for group in groups if "flip_threshold" not in group]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups

    @torch.no_grad()
    def _flip(self, group: dict[str, Any]) -> None:
        rate = group["adaptivity"] * group["lr"] / group["initial_lr"]
        for weight in group["params"]:
            if weight.grad is None:
                continue
            # under SGD's own name, so that a checkpoint keeps it
            state = self.state[weight]
            momentum = state.setdefault("momentum_buffer", torch.zeros_like(weight))
            momentum.lerp_(weight.grad, rate)
            weight.copy_(torch.where(_flips(momentum, weight, group["flip_threshold"]), -weight, weight))


def _flips(momentum: Tensor, weight: Tensor, threshold: float) -> Tensor:
    return (momentum.abs() > threshold) & (momentum.sign() == weight.sign())


@torch.no_grad()
def binary_weights(model: nn.Module) -> list[Tensor]:
    """The weights that `Bop` flips, each set to its sign: those of the binary convolutions.

    Raises ValueError where there are none, or where the method takes signs of something else than its weights.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, BinaryConv2d)]
    if not layers or not all(layer.latent_may_be_sign for layer in layers):
        raise ValueError(
            "Bop flips weights that are plain signs; this method has none. "
            "Set model.method to agmm, vanilla or xnor_learned, or optim.optimizer=sgd."
        )
    weights = [layer.weight for layer in layers]
    for weight in weights:
        weight.copy_(hard_sign(weight))
    return weights


def make_bop(
    model: nn.Module,
    others: Iterable[dict[str, Any]],
    *,
    lr: float,
    momentum: float,
    adaptivity: float,
    threshold: float,
) -> Bop:
    """`Bop` over the model's binary weights, which become +-1 here, and SGD over the groups `others` without them."""
    binary = binary_weights(model)
    flipped = {id(weight) for weight in binary}
    rest = [group | {"params": [p for p in group["params"] if id(p) not in flipped]} for group in others]
    own = {"params": binary, "adaptivity": adaptivity, "flip_threshold": threshold, "initial_lr": lr}
    return Bop([own, *rest], lr=lr, momentum=momentum)
