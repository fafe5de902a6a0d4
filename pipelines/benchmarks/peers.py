"""The neurons of other libraries, where they are installed: `pip install spikingjelly loguru snntorch`."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

LEAK = 0.5


def peers() -> Iterator[tuple[str, nn.Module]]:
    """The neurons of the libraries that are installed, with our leak, threshold and reset."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own
        if has_spikingjelly():
            yield "SpikingJelly", SpikingJelly()
        if importlib.util.find_spec("snntorch"):
            yield "snnTorch", SnnTorch()


class SpikingJelly(nn.Module):
    """Its LIFNode over all steps: tau is 1 / (1 - leak), PiecewiseQuadratic(1) is the triangle of width 1."""

    def __init__(self) -> None:
        super().__init__()
        library: Any = importlib.import_module("spikingjelly.activation_based.neuron")
        surrogate: Any = importlib.import_module("spikingjelly.activation_based.surrogate")
        triangle = surrogate.PiecewiseQuadratic(alpha=1.0)
        self.node = library.LIFNode(1 / (1 - LEAK), False, surrogate_function=triangle, step_mode="m")

    def forward(self, x_T: Tensor) -> Tensor:
        """A current `[T, ...]` to spikes."""
        self.node.reset()
        return self.node(x_T)


class SnnTorch(nn.Module):
    """Its Leaky, step by step, with its own default surrogate."""

    def __init__(self) -> None:
        super().__init__()
        library: Any = importlib.import_module("snntorch")
        self.node = library.Leaky(beta=LEAK, reset_mechanism="zero")

    def forward(self, x_T: Tensor) -> Tensor:
        """A current `[T, ...]` to spikes."""
        membrane, fired = self.node.reset_mem(), []
        for x in x_T.unbind(0):
            spike, membrane = self.node(x, membrane)
            fired.append(spike)
        return torch.stack(fired)


def has_spikingjelly() -> bool:
    """Whether `SpikingJelly` can be made."""
    return all(importlib.util.find_spec(name) is not None for name in ("spikingjelly", "loguru"))


def versions() -> str:
    """Of the peers that are installed."""
    found = []
    for name in ("spikingjelly", "snntorch"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
