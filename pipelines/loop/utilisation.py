"""What part of the devices' speed a training uses: the model's FLOPs against a matrix product that was timed here.

A multiply-add is two FLOPs, a training image three passes: forward, and backward for inputs and for weights. MACs are
those of `agmm.metrics.operations`, binary convolutions as if they multiplied, each of T time steps, without padding.
What else a step computes (norms, neurons, the update, a teacher) is not counted, so that two ways to compute the same
network can be compared.
"""

from __future__ import annotations

import time
from functools import cache

import torch
from torch import Tensor

from agmm.metrics.operations import OperationMeter
from pipelines.config import ModelConfig
from pipelines.loop.window import Window
from pipelines.loop.world import World
from pipelines.network import build_network

_BUDGET_S, _MOST_S = 0.15, 1.0  # the latter where other processes have the cores
_LEAST = 20  # products
_LONG_ENOUGH_S = 0.005  # of one product
_SIZES = (256, 512, 1024, 2048, 4096, 8192)
_PASSES, _FLOPS = 3, 2  # of a training image, and of a multiply-add


class Utilisation:
    """The FLOPs of a network's training, and the peak of all ranks' devices. Every rank makes one at the same time."""

    def __init__(self, model: ModelConfig, world: World, precision: str) -> None:
        self._model, self._ranks = model, world.size
        self._macs: dict[torch.Size, int] = {}  # by shape of an image; data may grow over the epochs
        (self._peak,) = world.sum([matmul_peak(world.device.type, precision, torch.get_num_threads())])

    def flops(self, images: Tensor) -> float:
        """Of training on a batch of images `[B, C, H, W]` or frames `[B, T, C, H, W]`."""
        shape = images.shape[1:]
        if shape not in self._macs:
            self._macs[shape] = macs(self._model, shape)
        return float(_FLOPS * _PASSES * len(images) * self._macs[shape])

    def speed(self, total: Window) -> dict[str, float]:
        """Of a window over all ranks: `images_per_second`, and `mfu`, the share of the peak; nothing without time."""
        seconds = total.seconds / self._ranks
        if not seconds:
            return {}
        return {"images_per_second": total.images / seconds, "mfu": total.flops / seconds / self._peak}


@torch.no_grad()
def macs(model: ModelConfig, shape: torch.Size) -> int:
    """MACs of one image, or of one sample of frames `[T, C, H, W]`, through the network; nothing is computed."""
    with torch.device("meta"):
        network = build_network(model).eval()
        image = torch.empty(shape)
    meter = OperationMeter(network)
    with meter.measuring():
        network(image.unsqueeze(1 if len(shape) == 4 else 0))
    return meter.connections


@cache
def matmul_peak(device: str, precision: str, threads: int) -> float:  # noqa: ARG001, one peak for each number of them
    """FLOP/s of the fastest of some products of square matrices, in the precision of a run; once per process."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rates, sizes, began = [0.0], list(_SIZES), time.perf_counter()
    matrix = _matrix(sizes.pop(0), device, dtype)
    while (spent := time.perf_counter() - began) < _BUDGET_S or (len(rates) <= _LEAST and spent < _MOST_S):
        seconds = _timed(matrix)
        rates.append(_FLOPS * len(matrix) ** 3 / seconds)
        if seconds < _LONG_ENOUGH_S and sizes:
            matrix = _matrix(sizes.pop(0), device, dtype)
    return max(rates)


def _matrix(size: int, device: str, dtype: torch.dtype) -> Tensor:
    numbers = torch.Generator(device).manual_seed(0)  # its own: a run's are not to be disturbed
    matrix = torch.rand(size, size, generator=numbers, device=device).to(dtype)
    _timed(matrix)  # what a first one does once
    return matrix


def _timed(matrix: Tensor) -> float:
    if matrix.is_cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    torch.mm(matrix, matrix)
    if matrix.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began
