"""A network from its configuration, and the images that it is fed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from agmm import models
from agmm.kernels import fuse, keep_less
from agmm.kernels.memory import keep_memory
from agmm.optim import make_optimizer
from pipelines.config import DataConfig, ModelConfig, OptimConfig, RunConfig
from pipelines.errors import UserError


def build_network(config: ModelConfig) -> models.SpikingNetwork:
    """The network that a recipe describes, with fresh weights, channels last. Raises UserError for what it refuses."""
    known = models.list_models("agmm_*")
    if config.arch not in known:
        raise UserError(f"Unknown model {config.arch!r}. Known: {', '.join(known)}. Set model.arch.")
    try:
        network = models.create_model(config.arch, **timm_arguments(config))
        # the layout in which CPU and GPU convolutions are fast
        return network.to(memory_format=torch.channels_last)
    except ValueError as error:
        raise UserError(f"Cannot build {config.arch}: {error}") from error


def training_network(config: RunConfig, device: torch.device) -> models.SpikingNetwork:
    """The network that a worker trains on a device, as `run.kernels` and `run.memory` say."""
    network = build_network(config.model).to(device)
    if config.run.kernels == "auto":
        fuse(network, config.run.memory)
        if device.type == "cpu":
            keep_memory()
    else:
        keep_less(network, config.run.memory)
    return network


def timm_arguments(config: ModelConfig) -> dict[str, Any]:
    """What `timm.create_model` is given of a network's configuration, beside its name; None: the network's own."""
    return {
        "num_classes": config.num_classes,
        "in_chans": config.in_chans,
        "num_steps": config.time_steps,
        "width": config.width,
        "stem": config.stem,
        "method": config.method,
        "gate_kind": config.gate.kind,
        "gate_scope": config.gate.scope,
        "norm": config.norm,
        "neuron": config.neuron.kind,
        **config.neuron.model_dump(exclude={"kind"}),
    }


def build_optimizer(network: nn.Module, config: OptimConfig) -> Optimizer:
    """The optimiser of a recipe over a network's parameters. Raises UserError where the method has no use for it."""
    try:
        return make_optimizer(
            config.optimizer,
            network,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            adaptivity=config.bop_adaptivity,
            flip_threshold=config.bop_threshold,
        )
    except ValueError as error:
        raise UserError(f"Cannot train with optim.optimizer={config.optimizer}: {error}") from error


def normalise(images_BCHW: Tensor, data: DataConfig, device: torch.device) -> Tensor:
    """uint8 images to float32 on the device, by the channel means and deviations of the recipe.

    Event frames, known by their fifth axis, go from [B, T, 2, H, W] to [T, B, 2, H, W]: counts of events as they are.
    """
    if images_BCHW.ndim == 5:
        return _time_first(images_BCHW, device)
    images = images_BCHW.to(device, non_blocking=True).float().div_(255)
    mean = torch.tensor(data.mean, device=device).view(1, 3, 1, 1)
    std = torch.tensor(data.std, device=device).view(1, 3, 1, 1)
    return images.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


def _time_first(frames_BTCHW: Tensor, device: torch.device) -> Tensor:
    frames_TBCHW = frames_BTCHW.to(device, non_blocking=True).transpose(0, 1)
    steps = frames_TBCHW.shape[:2]
    # channels last once time and batch are folded, as the convolutions see it
    folded = frames_TBCHW.flatten(0, 1).to(torch.float32, memory_format=torch.channels_last)
    return folded.unflatten(0, steps)
