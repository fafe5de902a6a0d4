"""The training loss of a recipe, and the teacher that may be part of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from agmm import models
from agmm.loop import precision_context
from agmm.losses import Criterion, FiringPenalty
from agmm.methods import get_method
from agmm.neuron import LIF
from pipelines.config import DataConfig, DistillConfig, RunConfig
from pipelines.errors import UserError

_LONGEST = 300  # of a library's own words in a message


def build_criterion(config: RunConfig, network: nn.Module, device: torch.device) -> Criterion:
    """The loss that a recipe trains `network` with. Raises UserError for a teacher that cannot teach it."""
    weight = get_method(config.model.method).firing_penalty
    distill = config.loss.distill
    return Criterion(
        label_smoothing=config.optim.label_smoothing,
        tet=config.loss.tet,
        teacher=_teacher(config, device) if distill.teacher else None,
        distill=distill.share,
        temperature=distill.temperature,
        penalty=FiringPenalty(network, weight).take if weight and _fires(network) else None,
    )


def _fires(network: nn.Module) -> bool:
    return any(isinstance(layer, LIF) for layer in network.modules())


def _teacher(config: RunConfig, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A frozen network: what the student sees to logits `[B, K]`."""
    distill, precision = config.loss.distill, config.run.precision
    network = _load(distill, config.model.num_classes).eval().requires_grad_(False)
    _check_fit(network, config)
    network.to(device)
    renormalise = _renormalise(network, config.data, device) if distill.pretrained else lambda images: images

    @torch.no_grad()
    def teach(images: Tensor) -> Tensor:
        with precision_context(images.device, precision):
            logits = network(renormalise(images))
        return logits.mean(0) if logits.ndim == 3 else logits  # a spiking teacher gives [T, B, K]

    return teach


def _load(distill: DistillConfig, num_classes: int) -> nn.Module:
    name = str(distill.teacher)
    if not models.is_model(name):
        raise UserError(f"Unknown teacher {name!r}. Allowed: any name of timm.list_models(). Set loss.distill.teacher.")
    try:
        # a published head is kept as it is: it fits the recipe's classes, or the teacher is refused
        classes = {} if distill.pretrained else {"num_classes": num_classes}
        network = models.create_model(name, pretrained=distill.pretrained, **classes, **distill.options)
        if distill.weights:
            network.load_state_dict(load_file(Path(distill.weights).expanduser()))
    except SafetensorError as error:
        raise UserError(f"{distill.weights} is not a safetensors file ({error}). Set loss.distill.weights.") from error
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"Cannot load teacher {name}: {_shortened(str(error))}. Its classes must be the recipe's {num_classes}. "
            "Check loss.distill.weights and loss.distill.options (as width, num_steps, in_chans)."
        ) from error
    return network


def _shortened(text: str) -> str:
    """A list of every weight that does not fit says no more than its beginning."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


@torch.no_grad()
def _check_fit(network: nn.Module, config: RunConfig) -> None:
    """Raise UserError where the teacher does not take what the student sees, or knows other classes."""
    name, model, size = config.loss.distill.teacher, config.model, config.data.resolution
    frames = [model.time_steps] if model.in_chans == 2 else []
    try:
        for size in sorted({config.data.resolution_in(epoch) for epoch in range(config.optim.epochs)}):
            classes = network(torch.zeros(*frames, 1, model.in_chans, size, size)).shape[-1]
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        what = f"frames [{model.time_steps}, B, 2" if frames else f"images [B, {model.in_chans}"
        raise UserError(
            f"Teacher {name} does not take the student's {what}, {size}, {size}]: {error} "
            "Choose another, or set loss.distill.options."
        ) from error
    if classes != model.num_classes:
        raise UserError(
            f"Teacher {name} knows {classes} classes, the recipe has {model.num_classes}. "
            "Take a teacher that was trained on the recipe's classes, by loss.distill.weights."
        )


def _renormalise(network: nn.Module, data: DataConfig, device: torch.device) -> Callable[[Tensor], Tensor]:
    """From the recipe's mean and deviation to those that the published weights were trained with."""
    cfg: Any = network.pretrained_cfg
    ours = [torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (data.mean, data.std)]
    theirs = [torch.tensor(cfg[key], device=device).view(1, 3, 1, 1) for key in ("mean", "std")]
    return lambda images: (images * ours[1] + ours[0] - theirs[0]) / theirs[1]
