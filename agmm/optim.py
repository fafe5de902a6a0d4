"""The optimisers, and the learning rate as a pure function of the step."""

import math
from typing import Any

from torch import nn
from torch.optim import SGD, Optimizer

from agmm.bop import make_bop


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Convolution and linear weights decay; vectors and scalars (norms, biases, alpha) do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def make_optimizer(
    name: str,
    model: nn.Module,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    adaptivity: float = 1e-4,
    flip_threshold: float = 1e-8,
) -> Optimizer:
    """`sgd`, with momentum over `parameter_groups`; or `bop`, which flips binary weights (see `agmm.bop`).

    Args:
        adaptivity, flip_threshold: of Bop; the defaults are its authors' for CIFAR-10.

    Raises:
        ValueError: for an unknown name.

    """
    groups = parameter_groups(model, weight_decay)
    if name == "sgd":
        return SGD(groups, lr=lr, momentum=momentum)
    if name == "bop":
        return make_bop(model, groups, lr=lr, momentum=momentum, adaptivity=adaptivity, threshold=flip_threshold)
    raise ValueError(f"Unknown optimiser {name!r}. Known: sgd, bop. Set optim.optimizer.")


def learning_rate(step: int, *, peak: float, total: int, warmup: int = 0, schedule: str = "cosine") -> float:
    """Rate for optimiser step `step` of `total`: linear warm-up over `warmup` steps, then cosine to 0 or constant.

    Raises:
        ValueError: for an unknown schedule.

    """
    if schedule not in ("cosine", "constant"):
        raise ValueError(f"Unknown schedule {schedule!r}. Known: cosine, constant. Set optim.schedule.")
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Give every parameter group the rate `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr
