"""What the process of `trial` does: steps on random images, and a stretch of validation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from agmm.loop import evaluate, train_step
from pipelines.config import RunConfig
from pipelines.data.loaders import open_loader, why_absent
from pipelines.network import build_optimizer, normalise, training_network
from pipelines.teacher import build_criterion

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has had since the last call: of a GPU what it reserved, else resident."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_reserved(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    _RESET.write_text("5")  # proc(5): the high-water mark starts anew
    return int(line.split()[1]) * 1024


def import_what_workers_do(config: RunConfig) -> None:
    """Ray, and FFCV where it is used: what a worker holds besides torch and this package."""
    import ray.train.torch  # noqa: F401

    if config.data.loader != "torch":
        why_absent()


class Stepper:
    """The training step of a recipe, on random images."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self._config, self._device = config, device
        self._network = training_network(config, device).train()
        if config.run.compile:
            self._network.compile()
        self._optimizer = build_optimizer(self._network, config.optim)
        self._criterion = build_criterion(config, self._network, device)

    def step(self, batch: int) -> None:
        """Two steps: the second has the optimiser's state beside it."""
        config = self._config
        labels = torch.arange(batch, device=self._device) % config.model.num_classes
        for _ in range(2):
            images = normalise(_random_images(config, batch), config.data, self._device)
            train_step(
                self._network,
                self._optimizer,
                images,
                labels,
                precision=config.run.precision,
                criterion=self._criterion,
                loss_weight=0.0,  # images of noise must not make weights infinite
            )

    def state_bytes(self) -> dict[str, int]:
        """Of `weights`, and of the `optimizer` once it has made a step."""
        states = (each for state in self._optimizer.state.values() for each in state.values())
        return {
            "weights": sum(each.nbytes for each in self._network.parameters()),
            "optimizer": sum(each.nbytes for each in states if isinstance(each, Tensor)),
        }


def _random_images(config: RunConfig, batch: int) -> Tensor:
    side, frames = config.data.resolution, (config.model.time_steps, 2)
    shape = (batch, *(frames if config.model.in_chans == 2 else (3,)), side, side)
    return torch.randint(0, 256 if config.model.in_chans == 3 else 2, shape, dtype=torch.uint8)


def validation_speed(config: RunConfig, device: torch.device, folder: Path, batches: int) -> float:
    """Images per second over so many batches of the validation split, the first not counted where there are more."""
    network = training_network(config, device)
    loader = open_loader(folder, "val", data=config.data, seed=config.seed)
    images = loader.epoch(0)

    def take(count: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch, labels in islice(images, count):
            yield normalise(batch, config.data, device), labels.to(device)

    try:
        if loader.steps > 1:
            evaluate(network, take(1), precision=config.run.precision)
        started = time.perf_counter()
        seen = evaluate(network, take(batches), precision=config.run.precision)["count"]
        return seen / (time.perf_counter() - started)
    finally:
        loader.close()
